"""What a plugin promises: mask samplers, reconstruction targets, heads.

Legend: **B** images in one rank's micro-batch, **S** image side and **P** patch side in
pixels, **N** = (S/P)^2 patches, **V** visible, **M** = N - V hidden, **D** encoder width,
**K** prediction width, **C** classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mae_pipe.rng import Rng


@dataclass(frozen=True)
class Grid:
    """The patches of an image: ``rows`` x ``cols``, numbered row by row."""

    rows: int
    cols: int

    @property
    def size(self) -> int:
        """N."""
        return self.rows * self.cols

    def centres(self, device: torch.device | str = "cpu") -> Tensor:
        """[N, 2] float32: (row, column) of each patch's centre, in [0, 1)."""
        rows = (torch.arange(self.rows, device=device) + 0.5) / self.rows
        cols = (torch.arange(self.cols, device=device) + 0.5) / self.cols
        return torch.cartesian_prod(rows, cols)


class MaskSampler(ABC):
    """Says which patches should be hidden first. Kind ``mask``.

    A sampler only *ranks* patches; the core hides as many of the highest as the recipe's
    ratio says, so a sampler cannot get the count wrong.
    """

    @abstractmethod
    def scores(self, images: Tensor, grid: Grid, rng: Rng) -> Tensor:
        """[B, 3, S, S] normalised images -> [B, N] float32; the highest are hidden.

        Draw only from ``rng``: its numbers belong to the image, so that the mask does not
        depend on ranks or batches and a resumed run repeats it.
        """


class Target(nn.Module, ABC):
    """What hidden patches should be predicted as, and how wrong a prediction is. Kind ``target``.

    A target is built with ``patch=P`` and the recipe's options. It is frozen: its buffers
    travel in the checkpoint, it has no trainable parameters.
    """

    width: int  # K

    def fit(self, images: Iterator[Tensor]) -> None:
        """Learn from [B, 3, S, S] normalised batches once, before training. Default: nothing."""

    @abstractmethod
    def truth(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] normalised images -> [B, N, K] float32 or [B, N] int64."""

    @abstractmethod
    def loss(self, prediction: Tensor, truth: Tensor) -> Tensor:
        """[B, patches, K] and the matching truth -> [B, patches] float32, never reduced further."""

    @abstractmethod
    def picture(self, prediction: Tensor, images: Tensor) -> Tensor:
        """[B, N, K] predictions -> [B, 3, S, S] normalised images: what a person should see.

        ``images`` are the originals, for targets that need their statistics.
        """

    @property
    def caption(self) -> str:
        """How ``picture`` was made, in a few words; shown under it."""
        return ""


class Head(nn.Module, ABC):
    """What is trained on an encoder's tokens. Kind ``head``; built with ``width=D, classes=C`` and options."""

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """[B, 1 + N, D]: class token, then patch tokens -> output, here [B, C]."""

    @abstractmethod
    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """-> [B] float32. ``labels`` are [B] int64, or [B, C] float32 shares where labels are mixed."""

    @abstractmethod
    def metrics(self, output: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Each [B] float32: their means are then exact however images are split into batches."""
