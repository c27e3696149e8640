"""A method for tests that collapses, unless it is told not to: two views of an image have the same features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_pipe.api import Batch, Crop, Method, plugin


@plugin("twins")
class Twins(Method):
    """Wang and Isola's alignment, and uniformity times ``apart``.

    Args:
        apart: 0: nothing keeps the features of different images from being the same.
    """

    views = (Crop(), Crop())

    def __init__(self, encoder: nn.Module, apart: float = 0.0) -> None:
        super().__init__()
        self.encoder, self.apart = encoder, apart

    def loss(self, batch: Batch) -> Tensor:
        one, other = (F.normalize(self.features(images), dim=1) for images in self.images_of(batch))
        loss = (one - other).square().sum(dim=1).mean()
        if self.apart:
            near = torch.stack([torch.pdist(view).square().mul(-2).exp().mean() for view in (one, other)])
            loss = loss + self.apart * near.log().mean()
        return loss

    def signs(self) -> dict[str, float]:
        return {"sign": 0.25}
