"""A class for every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_pipe.api import Head, View, plugin

from .upernet import LEVELS, Upernet, of_blocks, of_one

IGNORED = 255  # the class of pixels that do not count


@plugin("segmentation")
class SegmentationHead(Head):
    """Say a class for every pixel; cross-entropy, mean intersection over union.

    The linear decoder is one layer on the patch tokens, enlarged to the pixels (as DINOv2, Oquab et al. 2023).
    The other is an UperNet (Xiao et al. 2018) on a pyramid that is made of the last map alone (ViTDet, Li et
    al. 2022), or of the maps of four blocks (BEiT, Bao et al. 2022; MAE's A.4).

    Options:
        decoder: "linear" or "upernet".
        hidden: channels inside the UperNet, a multiple of 16.
        std: of the last layer's first weights.
        blocks: four of the encoder's that the UperNet sees, such as [3, 5, 7, 11] of ViT-B; none: the last alone.
    """

    labels = "map"
    main = "miou"

    def __init__(
        self,
        *,
        width: int,
        classes: int,
        view: View,
        class_tokens: int = 1,
        decoder: Literal["linear", "upernet"] = "linear",
        hidden: int = 128,
        std: float = 0.01,
        blocks: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if decoder not in ("linear", "upernet"):
            raise ValueError(f"decoder must be 'linear' or 'upernet', got {decoder!r}")
        if hidden < 16 or hidden % 16:
            raise ValueError(f"hidden must be a multiple of 16, got {hidden}")
        if blocks and (decoder != "upernet" or len(blocks) != LEVELS):
            raise ValueError(f"blocks are {LEVELS} for the decoder 'upernet', got {list(blocks)} for {decoder!r}")
        self.view, self.class_tokens, self.classes = view, class_tokens, classes
        self.blocks, self.normed = tuple(blocks), not blocks
        self.norm = nn.Identity() if blocks else nn.LayerNorm(width, eps=1e-6)
        self.decoder: nn.Module = nn.Identity()
        if decoder == "upernet":
            self.decoder = Upernet(hidden, of_blocks(width, hidden) if blocks else of_one(width, hidden))
        self.classify = nn.Conv2d(width if decoder == "linear" else hidden, classes, 1)
        nn.init.trunc_normal_(self.classify.weight, std=std)
        assert self.classify.bias is not None
        nn.init.zeros_(self.classify.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T + N, D], or [B, 4, T + N, D] of four blocks -> [B, C, H, W]."""
        patches = self.norm(tokens[..., self.class_tokens :, :].to(self.classify.weight.dtype))
        maps = patches.transpose(-1, -2).unflatten(-1, (self.view.grid.rows, self.view.grid.cols))
        output: Tensor = self.classify(self.decoder(maps))
        size = self.view.height, self.view.width
        return F.interpolate(output.float(), size, mode="bilinear", align_corners=False)

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        each = F.cross_entropy(output.float(), labels, ignore_index=IGNORED, reduction="none")
        return each.sum(dim=(1, 2)) / (labels != IGNORED).sum(dim=(1, 2)).clamp(min=1)

    def metrics(self, output: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Pixels of each class, [B, C] each; numbers that float32 holds exactly."""
        counts, guess = labels != IGNORED, output.argmax(dim=1)
        both = self._pixels(guess, counts & (guess == labels))
        truth, said = self._pixels(labels, counts), self._pixels(guess, counts)
        return {"intersection": both, "union": truth + said - both, "truth": truth}

    def summary(self, means: dict[str, Tensor]) -> dict[str, float]:
        """A class that is in no map and that nobody says does not count."""
        both, union, truth = (means[name].double() for name in ("intersection", "union", "truth"))
        return {
            **super().summary(means),
            "miou": _mean(both[union > 0] / union[union > 0]),
            "mean_accuracy": _mean(both[truth > 0] / truth[truth > 0]),
            "pixel_accuracy": float(both.sum() / truth.sum()) if bool(truth.any()) else 0.0,
        }

    def _pixels(self, classes: Tensor, where: Tensor) -> Tensor:
        """[B, H, W] -> [B, C] float32: how many pixels are of each class."""
        kept = where.flatten(1)
        sums = torch.zeros(len(classes), self.classes, device=classes.device)
        return sums.scatter_add_(1, classes.flatten(1).where(kept, 0), kept.float())


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else 0.0
