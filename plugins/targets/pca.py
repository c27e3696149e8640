"""Hidden patches are predicted as their principal components."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mae_pipe.api import PluginError, Target, View, gather, patchify, plugin, unpatchify

NOTHING = 1e-11  # of the largest variance: what is less is rounding


@plugin("pca")
class PcaTarget(Target):
    """Predict the first coefficients of PCA in patch space (MAE, He et al. 2022, table 1d); mean squared error.

    The components are fitted before training: sums and products of all patches of so many training crops
    are added up in float64, and the eigenvectors of their covariance are what an SVD of the patches gives.
    They are kept in the run's checkpoints and weights.

    Options:
        components: k, coefficients that are predicted.
        images: training crops to fit on.
        whiten: divide each coefficient by its deviation, so that all weigh alike.
    """

    mean: Tensor
    axes: Tensor
    deviation: Tensor

    def __init__(self, *, view: View, components: int = 96, images: int = 2048, whiten: bool = False) -> None:
        super().__init__()
        if not 1 <= components <= view.numbers:
            raise ValueError(f"components must be from 1 to {view.numbers}, the numbers of a patch, got {components}")
        if images < 1:
            raise ValueError(f"images must be at least 1, got {images}")
        self.view, self.whiten = view, whiten
        self.width, self.fit_images = components, images
        self.register_buffer("mean", torch.zeros(view.numbers))
        self.register_buffer("axes", torch.zeros(components, view.numbers))  # orthonormal rows
        self.register_buffer("deviation", torch.ones(components))  # of the coefficients, falling

    def fit(self, images: Iterator[Tensor]) -> None:
        device = self.axes.device
        total = torch.zeros(self.view.numbers, dtype=torch.float64, device=device)
        products = torch.zeros(self.view.numbers, self.view.numbers, dtype=torch.float64, device=device)
        count = 0
        for batch in images:
            patches = patchify(batch.to(device), self.view.patch).flatten(0, 1).double()  # [B N, K]
            total += patches.sum(0)
            products += patches.T @ patches
            count += len(patches)
        if count <= self.width:
            raise PluginError(
                f"{count} patches are too few to fit {self.width} components; take more images, or set "
                f"target.options.components to less than {max(2, count)}"
            )
        mean = total / count
        covariance = (products - count * torch.outer(mean, mean)) / (count - 1)
        values, vectors = torch.linalg.eigh(covariance)  # rising
        rank = int((values > NOTHING * values[-1]).sum())
        if rank < self.width:
            raise PluginError(
                f"the patches vary in {rank} directions only, fewer than the {self.width} components (grey images "
                f"with three channels have a third of their numbers); set target.options.components={max(1, rank)}"
            )
        axes = vectors.T.flip(0)[: self.width]
        largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
        axes = axes * largest.sign()  # an axis has no direction of its own: its largest number is positive
        self.mean.copy_(mean)
        self.axes.copy_(axes)
        self.deviation.copy_(values.flip(0)[: self.width].clamp(min=1e-12).sqrt())

    def truth(self, images: Tensor) -> Tensor:
        return self._coefficients(patchify(images, self.view.patch))

    def truth_at(self, images: Tensor, numbers: Tensor) -> Tensor:
        return self._coefficients(gather(patchify(images, self.view.patch), numbers))

    def _coefficients(self, patches: Tensor) -> Tensor:
        """[B, patches, numbers of a patch] -> [B, patches, k]."""
        with torch.autocast(patches.device.type, enabled=False):
            coefficients = (patches.float() - self.mean) @ self.axes.T
        return coefficients / self.deviation if self.whiten else coefficients

    def loss(self, prediction: Tensor, truth: Tensor) -> Tensor:
        return (prediction.float() - truth).square().mean(dim=-1)

    def picture(self, prediction: Tensor, images: Tensor) -> Tensor:
        coefficients = prediction.float() * self.deviation if self.whiten else prediction.float()
        patches = coefficients @ self.axes + self.mean
        return unpatchify(patches, self.view.patch, self.view.grid.rows, self.view.grid.cols)

    @property
    def caption(self) -> str:
        return f"drawn from {self.width} principal components of a patch"
