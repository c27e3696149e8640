"""What a plugin promises: mask samplers, reconstruction targets, heads.

Legend: **B** images in one rank's micro-batch, **H** x **W** their pixels (S where square),
**P** patch side, **N** patches, **V** visible, **M** = N - V hidden, **D** encoder width,
**T** class tokens, **K** prediction width, **C** classes; an image has 3 channels unless a recipe says otherwise.

A plugin is built with its options and with what its ``__init__`` asks for by name of what is
offered to its kind: ``view`` to a target; ``width``, ``classes``, ``class_tokens`` and ``view`` to a head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mae_pipe.masking import gather
from mae_pipe.precision import keep_float32
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


@dataclass(frozen=True)
class View:
    """What a model sees of an image: normalised pixels, cut into patches.

    Attributes:
        patch: rows and columns of pixels in a patch.
        mean, std: of each channel, for pixels in [0, 1].
    """

    height: int
    width: int
    patch: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def grid(self) -> Grid:
        """The patches of an image."""
        return Grid(self.height // self.patch[0], self.width // self.patch[1])

    @property
    def numbers(self) -> int:
        """Pixel values in a patch, over all channels."""
        return self.patch[0] * self.patch[1] * self.channels

    def colours(self, images: Tensor) -> Tensor:
        """[B, C, H, W] normalised images -> float32 in [0, 1]."""
        mean, std = self._statistics(images)
        return images.float() * std + mean

    def normalised(self, colours: Tensor) -> Tensor:
        """The inverse of ``colours``."""
        mean, std = self._statistics(colours)
        return (colours.float() - mean) / std

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = torch.tensor((self.mean, self.std), device=like.device)[:, :, None, None]
        return mean, std


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

    A target is frozen: it has no trainable parameters, and its buffers travel in the checkpoint. It
    stays in float32 in a model that is cast to another precision.

    Attributes:
        width: K, numbers predicted a patch; for token targets the size of the codebook.
        fit_images: how many training images ``fit`` wants to see; 0: it is not called.
    """

    width: int
    fit_images: int = 0

    def fit(self, images: Iterator[Tensor]) -> None:
        """Learn buffers from [B, C, H, W] normalised batches, once, before training.

        Called on one process; the others are given its buffers, and a resumed run the checkpoint's.
        """

    @abstractmethod
    def truth(self, images: Tensor) -> Tensor:
        """[B, C, H, W] normalised images -> [B, N, K] float32 or [B, N] int64."""

    def truth_at(self, images: Tensor, numbers: Tensor) -> Tensor:
        """The truth of the patches ``numbers`` [B, M] only, [B, M, K] or [B, M]: what training asks for.

        To override where a patch's truth needs no more than that patch.
        """
        return gather(self.truth(images), numbers)

    @abstractmethod
    def loss(self, prediction: Tensor, truth: Tensor) -> Tensor:
        """[B, patches, K] and the matching truth -> [B, patches] float32, never reduced further."""

    @abstractmethod
    def picture(self, prediction: Tensor, images: Tensor) -> Tensor:
        """[B, N, K] predictions -> [B, C, H, W] normalised images: what a person should see.

        ``images`` are the originals, for targets that need their statistics.
        """

    @property
    def caption(self) -> str:
        """How ``picture`` was made, in a few words; shown under it."""
        return ""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Target:
        # An engine that casts the model to bfloat16 must not round what the truth is made of.
        keep_float32(self, partial(super()._apply, fn, recurse))
        return self

    def provenance(self) -> dict[str, str]:
        """What else than options and data decides the truth, such as the hash of a tokenizer.

        A run records it and goes on only where it is the same.
        """
        return {}


class Head(nn.Module, ABC):
    """What is trained on an encoder's tokens. Kind ``head``.

    Attributes:
        labels: what it learns from: a class an image ([B] int64), several ([B, C] float32 of 0 and 1), or a
            class a pixel ([B, H, W] int64, 255 where none).
        fits: whether ``fit`` is to be called.
        main: the metric that people look at first; higher is better.
        normed: whether it wants tokens after the encoder's final norm, which else is left out of the model. A head
            that norms what it pools sets it to False in ``__init__``.
        blocks: of which blocks of the encoder it wants the tokens, rising, from 0, such as (3, 5, 7, 11): it is then
            given [B, K, T + N, D], without any norm (``normed`` is False). Empty: of the last alone, [B, T + N, D].
            Set in ``__init__``.
    """

    labels: ClassVar[Literal["class", "multi", "map"]] = "class"
    fits: ClassVar[bool] = False
    main: ClassVar[str] = "top1"
    normed: bool = True
    blocks: tuple[int, ...] = ()

    def fit(self, features: Iterator[tuple[Tensor, Tensor]]) -> None:
        """Learn from (tokens, labels) of all training images, once, before any training. Every rank sees all."""

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T + N, D]: class tokens, then patch tokens -> output, [B, C] for classes, [B, C, H, W] for maps."""

    @abstractmethod
    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """-> [B] float32. Classes are [B] int64, or [B, C] float32 shares where they are mixed."""

    @abstractmethod
    def metrics(self, output: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Each [B, ...] float32: their means are then exact however images are split into batches."""

    def summary(self, means: dict[str, Tensor]) -> dict[str, float]:
        """What is reported, of the means over all images of ``metrics``. Default: those that are one number."""
        return {name: float(mean) for name, mean in means.items() if mean.dim() == 0}
