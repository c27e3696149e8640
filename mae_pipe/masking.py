"""Scores of patches become a mask: which are visible, which hidden, and where each goes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mae_pipe.errors import RecipeError


def visible_count(patches: int, ratio: float) -> int:
    """V = int(N (1 - ratio)), in Python floats as the official code, so int(196 * (1 - 0.9)) is 19."""
    if not (math.isfinite(ratio) and 0 <= ratio < 1):
        raise RecipeError(f"mask.ratio must be in [0, 1), got {ratio}")
    visible = int(patches * (1 - ratio))
    if visible < 1:
        raise RecipeError(f"mask.ratio {ratio} leaves none of {patches} patches visible; lower it")
    return visible


@dataclass(frozen=True)
class Mask:
    """A split of N patches into V visible and M hidden ones, for each of B images.

    Attributes:
        order: [B, N] int64, patch numbers from the lowest to the highest score.
        visible_count: V.
    """

    order: Tensor
    visible_count: int

    @classmethod
    def from_scores(cls, scores: Tensor, ratio: float) -> Mask:
        """Hide the highest of ``scores`` [B, N]; MAE's random mask is this of uniform noise."""
        return cls(torch.argsort(scores, dim=1, stable=True), visible_count(scores.shape[1], ratio))

    @property
    def visible(self) -> Tensor:
        """[B, V] int64: numbers of the visible patches, in the order in which the encoder sees them."""
        return self.order[:, : self.visible_count]

    @property
    def hidden(self) -> Tensor:
        """[B, M] int64: numbers of the hidden patches."""
        return self.order[:, self.visible_count :]

    @property
    def restore(self) -> Tensor:
        """[B, N] int64: where patch n stands in (visible, hidden)."""
        places = torch.arange(self.order.shape[1], device=self.order.device).expand_as(self.order)
        return torch.empty_like(self.order).scatter_(1, self.order, places)

    def visible_of(self, patches: Tensor) -> Tensor:
        """[B, N, ...] -> [B, V, ...]."""
        return gather(patches, self.visible)

    def hidden_of(self, patches: Tensor) -> Tensor:
        """[B, N, ...] -> [B, M, ...]."""
        return gather(patches, self.hidden)

    def as_map(self) -> Tensor:
        """[B, N] bool: True where hidden."""
        hidden = torch.ones_like(self.order, dtype=torch.bool)
        return hidden.scatter_(1, self.visible, False)


def gather(patches: Tensor, numbers: Tensor) -> Tensor:
    """[B, N, ...], [B, k] -> [B, k, ...]: the named patches of each image."""
    index = numbers.reshape(*numbers.shape, *[1] * (patches.dim() - 2)).expand(*numbers.shape, *patches.shape[2:])
    return patches.gather(1, index)
