"""A target of tokens for the checks of methods that want one: which of fixed random directions a patch goes most in."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mae_pipe.api import Target, View, patchify, plugin, unpatchify

NAME = "directions"


@plugin(NAME)
class Directions(Target):
    """Predict the nearest of random directions (BEST-RQ, Chiu et al. 2022)."""

    directions: Tensor

    def __init__(self, *, view: View) -> None:
        super().__init__()
        self.view, self.width = view, 16  # K
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("directions", torch.randn(view.numbers, self.width, generator=generator))

    def truth(self, images: Tensor) -> Tensor:
        """[B, N] int64."""
        return (patchify(images, self.view.patch).float() @ self.directions).argmax(dim=-1)

    def loss(self, prediction: Tensor, truth: Tensor) -> Tensor:
        """Cross-entropy of every patch."""
        return F.cross_entropy(prediction.float().transpose(1, 2), truth, reduction="none")

    def picture(self, prediction: Tensor, images: Tensor) -> Tensor:
        """Every patch as its direction."""
        patches = self.directions.T[prediction.argmax(dim=-1)]
        return unpatchify(patches, self.view.patch, self.view.grid.rows, self.view.grid.cols)
