"""Hidden patches are predicted as their pixels, each patch normalised by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from mae_pipe.api import Target, View, gather, patchify, plugin, unpatchify


@plugin("normalized_pixel")
class NormalizedPixelTarget(Target):
    """Predict pixels less their patch's mean, over its deviation (MAE, He et al. 2022, section 3).

    Mean and unbiased variance are of all numbers of a patch, over its channels. A prediction says nothing
    of either, so its picture takes them from the original patch.
    """

    def __init__(self, *, view: View) -> None:
        super().__init__()
        self.view = view
        self.width = view.numbers

    def truth(self, images: Tensor) -> Tensor:
        return _normalized(patchify(images, self.view.patch).float())

    def truth_at(self, images: Tensor, numbers: Tensor) -> Tensor:
        return _normalized(gather(patchify(images, self.view.patch), numbers).float())

    def loss(self, prediction: Tensor, truth: Tensor) -> Tensor:
        return (prediction.float() - truth).square().mean(dim=-1)

    def picture(self, prediction: Tensor, images: Tensor) -> Tensor:
        deviation, mean = _statistics(patchify(images, self.view.patch).float())
        patches = prediction * deviation + mean
        return unpatchify(patches, self.view.patch, self.view.grid.rows, self.view.grid.cols)

    @property
    def caption(self) -> str:
        return "each predicted patch is drawn with the mean and deviation of the original patch"


def _normalized(patches: Tensor) -> Tensor:
    """[B, patches, K], each patch by itself."""
    deviation, mean = _statistics(patches)
    return (patches - mean) / deviation


def _statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """[B, N, K] -> deviation and mean, [B, N, 1] each; 1e-6 keeps flat patches finite."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (variance + 1e-6).sqrt(), mean
