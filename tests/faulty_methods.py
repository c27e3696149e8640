"""A method that keeps its contract, and what would break it: (check, what stands there, what instead, what is said)."""

# ruff: noqa: E501 (the table of defects reads better in lines)

from __future__ import annotations

METHOD = '''
"""A method."""
import random
import numpy
import torch
from torch import nn
from mae_pipe.api import Batch, Crop, Method, plugin

@plugin("it")
class It(Method):
    """Predict an image's mean colour from a noisy copy.

    Options:
        noise: how much.
    """
    views = (Crop(), Crop(size=16))
    def __init__(self, encoder: nn.Module, noise: float = 0.5) -> None:
        super().__init__()
        self.encoder, self.noise = encoder, noise
        self.predict = nn.Linear(encoder.embed_dim, 3)
        self.register_buffer("level", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))
    def loss(self, batch):
        images, small = self.images_of(batch)
        noisy = images + self.noise * self.rng(batch, "noise").normal(*images.shape[1:])
        colour = self.predict(self.encoder(noisy).mean(1)).float()
        error = (colour - small.mean((2, 3))).square().mean(1)
        if self.training:
            self.seen += error.detach().mean()
        return error.mean() + self.level
    def after_step(self, progress):
        self.level.copy_(progress * self.seen)
        self.seen.zero_()
    def signs(self):
        return {"level": float(self.level)}
'''
SUM = "error.mean() + self.level"
INIT = "super().__init__()\n"
PICTURE = """    def reconstruction(self, batch):
        from mae_pipe.api import Mask, Reconstruction
        images, grid = self.images_of(batch)[0], self.view.grid
        mask = Mask.from_scores(self.rng(batch, "mask").uniform(grid.size), 0.5)
        return Reconstruction(images, mask, PICTURE, "")
    def signs"""

WRONG = [
    ("is built", INIT, f"{INIT}        raise ValueError('never')\n", "never"),
    ("loses a number", SUM, "error", r"loss gave shape \[6\], expected \[\]"),
    ("loses a number", SUM, f"({SUM}).double()", "float64, expected float32"),
    ("loses a number", "float(self.level)", "self.level", "expected floats by name"),
    ("trains", "self.predict = ", "self.idle = nn.Linear(2, 2)\n        self.predict = ", r"\['idle.weight', 'idle.bias'\]"),
    ("trains", SUM, f"({SUM}).detach()", "depends on no parameter"),
    ("trains", SUM, "(error - error).sqrt().mean()", "not finite"),
    ("leaves images alone", "    images, small", "    batch.labels.zero_(); images, small", "changed the batch"),
    ("repeats itself", "self.seen += ", "self.level += ", "another number for the same positions"),
    ("repeats itself", SUM, f"{SUM} + batch.numbers[0]", "another number for the same positions"),
    ("repeats itself", "progress * self.seen", "progress * random.random()", "the same steps when it was built again"),
    ("asks for labels", SUM, f"{SUM} + batch.labels[1]", "set labelled = True"),
    ("depends on its image alone", SUM, "error.std()", "set batchwise = True"),
    ("ignores global randomness", SUM, f"{SUM} + numpy.random.rand()", "It drew from NumPy's"),
    ("ignores global randomness", SUM, f"{SUM} + torch.rand(())", "It drew from PyTorch's"),
    ("changes nothing in evaluation", "if self.training", "if True", "changes seen in evaluation mode"),
    ("keeps its state", '"level", torch.zeros(())', '"level", torch.zeros(()), persistent=False', "by way of a checkpoint"),
    ("publishes an encoder", "    views = ", "    published = 'predict'\n    views = ", "predict is no encoder: bias, blocks"),
    ("publishes an encoder", "    views = ", "    published = 'teacher'\n    views = ", "'teacher', which it has not"),
    ("gives features", "    def signs", "    def features(self, images): return self.encoder(images)\n    def signs", r"expected \[B, D\]"),
    ("gives features", "    def signs", "    def features(self, images): return images.mean(0)[0]\n    def signs", "features gave shape"),
    ("draws what it predicts", "    def signs", PICTURE.replace("PICTURE", "images[:, :1]"), r"picture gave shape \[6, 1,"),
    ("draws what it predicts", "    def signs", PICTURE.replace("PICTURE", "images / 0"), "not finite"),
    ("draws what it predicts", "    def signs", PICTURE.replace("PICTURE", "images - images.mean()"), "depends on the others"),
    ("draws what it predicts", "    def signs", PICTURE.replace("PICTURE", "images").replace("grid.size)", "9)"), "mask is of"),
    ("changes nothing in evaluation", "    def signs", PICTURE.replace("PICTURE", "images + self.seen.add_(1)"), "changes seen"),
    ("follows devices", "small.mean((2, 3))", "small.mean((2, 3)) * torch.ones(6, 3)", "mixes devices"),
    ("is bf16 safe", "self.predict(self.encoder(noisy).mean(1)).float()", "self.predict(self.encoder(noisy).mean(1).float())", "fails in a bf"),
    ("is bf16 safe", SUM, f"({SUM}).to(self.predict.bias.dtype)", "bfloat16, expected float32"),
]  # fmt: skip
