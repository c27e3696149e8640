"""A model as an ONNX graph, written by PyTorch's exporter and checked by ONNX Runtime.

Needs the extra ``onnx``.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mae_pipe.autoencoder import build_encoder
from mae_pipe.errors import MaePipeError, RunError
from mae_pipe.interop.model import Model
from mae_pipe.pixels import Channels

FEATURES = ("tokens", "token", "mean")
TOLERANCE = 1e-4  # of the largest absolute difference that is let pass


class Network(nn.Module):
    """The graph: [B, C, H, W] float32 -> tokens [B, T + N, D], a feature [B, D], or logits [B, classes].

    Args:
        features: without a head: every token, the class token, or the mean of the patch tokens.
        normalise: images are in [0, 1]; else they are normalised already.
    """

    def __init__(self, model: Model, features: str, *, normalise: bool) -> None:
        super().__init__()
        shape, head = model.encoder, model.head
        self.encoder = build_encoder(shape, model.data.sides, channels=model.data.channels, positions="learned")
        self.norm: nn.Module = nn.Identity()
        self.classify: nn.Module = nn.Identity()
        self.features, self.first = head.pool if head else features, shape.class_tokens
        self.statistics: tuple[Channels, Channels] | None = None
        if normalise:
            self.statistics = model.data.mean, model.data.std
        weights = model.weights
        if head is not None:
            self.classify = nn.Linear(shape.width, len(head.classes))
            self.classify.load_state_dict(_below(weights, "head."))
            if head.norm == "own":
                self.encoder.norm = nn.Identity()
                self.norm = nn.LayerNorm(shape.width, eps=1e-6)
                self.norm.load_state_dict(_below(weights, "fc_norm."))
        wanted = self.encoder.state_dict()
        self.encoder.load_state_dict({name: weights[name] for name in wanted})
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        if self.statistics is not None:
            mean, std = (images.new_tensor(numbers)[:, None, None] for numbers in self.statistics)
            images = (images - mean) / std
        tokens: Tensor = self.encoder(images)
        if self.features == "tokens":
            return tokens
        pooled = tokens[:, 0] if self.features == "token" else tokens[:, self.first :].mean(dim=1)
        output: Tensor = self.classify(self.norm(pooled))
        return output


def write(model: Model, out: Path, *, features: str, normalise: bool) -> list[str]:
    """Write ``out``, with its weights inside, for any number of images; returns what was checked, in words.

    Raises:
        RunError: there is no class token to give.
        MaePipeError: the extra is missing, or ONNX Runtime computes other numbers.
    """
    if features == "token" and not model.encoder.class_tokens:
        raise RunError("--features token wants a class token, which the encoder has not; use mean or tokens")
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MaePipeError(
            f"export to ONNX needs {error.name}; install it with: pip install 'mae-pipe[onnx]'"
        ) from error
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        network = Network(model, features, normalise=normalise)
        torch.manual_seed(0)
        images = torch.rand(3, model.data.channels, *model.data.sides)
        with _quiet():
            program = torch.onnx.export(
                network,
                (images[:2],),
                input_names=["images"],
                output_names=["logits" if model.head else features],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            new = out.with_name(f".{out.name}.tmp")
            program.save(new, external_data=False)
        try:
            worst = 0.0
            session = onnxruntime.InferenceSession(new, providers=["CPUExecutionProvider"])
            for count in (1, 3):  # neither is the number that it was exported with
                (theirs,) = session.run(None, {"images": images[:count].numpy()})
                worst = max(worst, float(np.abs(theirs - network(images[:count]).numpy()).max()))
            if not worst <= TOLERANCE:
                raise MaePipeError(
                    f"ONNX Runtime's numbers differ by {worst:.1e} from PyTorch's, more than {TOLERANCE:g}; {out} was "
                    "not kept, so try other versions of onnx and onnxruntime"
                )
            new.replace(out)
        finally:
            new.unlink(missing_ok=True)
    return [f"ONNX Runtime's numbers differ by {worst:.1e} from PyTorch's at most, for 1 and 3 images"]


def _below(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


@contextlib.contextmanager
def _quiet():  # type: ignore[no-untyped-def]
    """Without the exporter's progress and advice, which are for people who write exporters."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
