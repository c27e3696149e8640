"""Hidden patches are predicted as a frozen teacher's features of them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mae_pipe.api import Target, Teacher, View, plugin


@plugin("feature")
class FeatureTarget(Target):
    """Predict what a frozen network says of a patch (MaskFeat, Wei et al. 2022; EVA, Fang et al. 2023).

    The teacher sees the whole image, at a size at which it has as many patches; other feature maps are
    averaged or interpolated to the grid. Its weights stay in their file, whose hash the run records.

    Options:
        teacher: a timm model, or the folder of a pretraining run.
        weights: of a timm model, a .safetensors or .pth file with its names; "none" for one that is not trained.
        measure: "cosine" (1 - cosine), or "smooth-l1".
        normalize: features are brought to mean 0 and deviation 1 first, each patch by itself.
    """

    def __init__(
        self,
        *,
        view: View,
        teacher: str = "",
        weights: str = "",
        measure: Literal["cosine", "smooth-l1"] = "cosine",
        normalize: bool = True,
    ) -> None:
        super().__init__()
        if not teacher:
            raise ValueError("teacher is missing: name a timm model, or the folder of a pretraining run")
        if measure not in ("cosine", "smooth-l1"):
            raise ValueError(f"measure must be 'cosine' or 'smooth-l1', got {measure!r}")
        self.view, self.measure, self.normalize = view, measure, normalize
        self._teacher = Teacher(teacher, weights, view)
        self.width = self._teacher.width

    def truth(self, images: Tensor) -> Tensor:
        features = self._teacher(images)  # [B, N, K]
        return F.layer_norm(features, features.shape[-1:]) if self.normalize else features

    def loss(self, prediction: Tensor, truth: Tensor) -> Tensor:
        if self.measure == "cosine":
            return 1 - F.cosine_similarity(prediction.float(), truth, dim=-1, eps=1e-6)
        return F.smooth_l1_loss(prediction.float(), truth, reduction="none").mean(dim=-1)

    def picture(self, prediction: Tensor, images: Tensor) -> Tensor:
        truth = self.truth(images).flatten(0, 1)  # [B N, K]
        mean = truth.mean(0)
        axes = torch.linalg.svd(truth - mean, full_matrices=False).Vh[:3]  # of the originals' features
        known = (truth - mean) @ axes.T
        low, high = known.quantile(0.02, dim=0), known.quantile(0.98, dim=0)
        colours = ((prediction.float() - mean) @ axes.T - low) / (high - low).clamp(min=1e-6)  # [B, N, 3]
        colours = F.pad(colours, (0, 3 - colours.shape[-1])).clamp(0, 1).transpose(1, 2)
        grid = colours.reshape(len(images), 3, self.view.grid.rows, self.view.grid.cols)
        drawn = F.interpolate(grid, (self.view.height, self.view.width))
        if self.view.channels != 3:
            drawn = drawn.mean(1, keepdim=True).expand(-1, self.view.channels, -1, -1)
        return self.view.normalised(drawn)

    @property
    def caption(self) -> str:
        return "features as colours: their first three principal components in the original images"

    def provenance(self) -> dict[str, str]:
        return {"teacher": self._teacher.hash}
