"""Several classes an image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_pipe.api import Head, plugin

from .classification import Pool, check_pool, pooled

SPREAD = math.asinh(8 * 32)  # scores beyond 32 are as good as certain


@plugin("multilabel")
class MultilabelHead(Head):
    """Say for every class whether the image has it; binary cross-entropy, mean average precision.

    The precision is averaged over thresholds that lie ``bins`` apart, so that it can be added up over images
    and ranks; with 1,000 it is within 0.001 of what sorting all scores gives.

    Options:
        pool: "token" or "mean", as for the linear head.
        bins: of the scores.
        std: of the first weights.
    """

    labels = "multi"
    main = "map"

    def __init__(
        self,
        *,
        width: int,
        classes: int,
        class_tokens: int = 1,
        pool: Pool = "mean",
        bins: int = 1000,
        std: float = 0.01,
    ) -> None:
        super().__init__()
        check_pool(pool, class_tokens)
        if bins < 2:
            raise ValueError(f"bins must be at least 2, got {bins}")
        self.pool: Pool = pool
        self.class_tokens, self.bins = class_tokens, bins
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.classify = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.classify.weight, std=std)
        nn.init.zeros_(self.classify.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.classify(self.norm(pooled(tokens, self.pool, self.class_tokens)))
        return output

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(output.float(), labels, reduction="none").mean(dim=1)

    def metrics(self, output: Tensor, labels: Tensor) -> dict[str, Tensor]:
        scores, has = output.float(), labels > 0.5  # [B, C]
        said = scores > 0
        # Nearly logarithmic, so that bins are finest where classes are hard to tell apart.
        place = (((8 * scores).asinh() / SPREAD + 1) / 2 * self.bins).long().clamp(0, self.bins - 1)
        counts = torch.zeros(*scores.shape, 2, self.bins, device=scores.device)
        counts.view(*scores.shape, -1).scatter_(2, (place + has * self.bins)[..., None], 1.0)
        return {
            "exact_match": (said == has).all(dim=1).float(),
            "counts": counts,  # [B, C, 2, bins]: without and with the class
            "hits": (said & has).sum(dim=1).float(),
            "said": said.sum(dim=1).float(),
            "there": has.sum(dim=1).float(),
        }

    def summary(self, means: dict[str, Tensor]) -> dict[str, float]:
        counts = means["counts"].double().flip(-1).cumsum(-1)  # [C, 2, bins], from the highest score down
        wrong, right = counts[:, 0], counts[:, 1]
        total = right[:, -1:]  # [C, 1]
        recall = right / total.clamp(min=1e-12)
        gained = torch.diff(recall, prepend=torch.zeros_like(recall[:, :1]))
        precision = (gained * right / (right + wrong).clamp(min=1e-12)).sum(dim=1)  # [C]
        there = total[:, 0] > 0
        said, hits = float(means["said"] + means["there"]), float(means["hits"])
        kept = {name: float(means[name]) for name in means if name not in ("counts", "hits", "said", "there")}
        return {**kept, "map": float(precision[there].mean()), "micro_f1": 2 * hits / max(said, 1e-12)}
