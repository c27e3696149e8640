"""Hidden patches are predicted as their pixels."""

from __future__ import annotations

from torch import Tensor

from mae_pipe.api import Target, View, gather, patchify, plugin, unpatchify


@plugin("pixel")
class PixelTarget(Target):
    """Predict normalised pixels; mean squared error (MAE, He et al. 2022, table 1d)."""

    def __init__(self, *, view: View) -> None:
        super().__init__()
        self.view = view
        self.width = view.numbers

    def truth(self, images: Tensor) -> Tensor:
        return patchify(images, self.view.patch).float()

    def truth_at(self, images: Tensor, numbers: Tensor) -> Tensor:
        return gather(patchify(images, self.view.patch), numbers).float()

    def loss(self, prediction: Tensor, truth: Tensor) -> Tensor:
        return (prediction.float() - truth).square().mean(dim=-1)

    def picture(self, prediction: Tensor, images: Tensor) -> Tensor:
        return unpatchify(prediction, self.view.patch, self.view.grid.rows, self.view.grid.cols)
