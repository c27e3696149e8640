"""Hidden patches are predicted as their pixels."""

from __future__ import annotations

from torch import Tensor

from mae_pipe.api import Target, patchify, plugin, unpatchify


@plugin("pixel")
class PixelTarget(Target):
    """Predict normalised pixels; mean squared error (MAE, He et al. 2022, table 1d)."""

    def __init__(self, *, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.width = 3 * patch * patch

    def truth(self, images: Tensor) -> Tensor:
        return patchify(images, self.patch).float()

    def loss(self, prediction: Tensor, truth: Tensor) -> Tensor:
        return (prediction.float() - truth).square().mean(dim=-1)

    def picture(self, prediction: Tensor, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        return unpatchify(prediction, self.patch, height // self.patch, width // self.patch)
