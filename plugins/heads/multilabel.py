"""Several classes an image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_pipe.api import Head, plugin

from .classification import Pool, check_pool, pooled

LARGEST = 0.005  # share of all images that one may be
PARTS = 16  # of a bin, in which its images are taken to lie evenly
SPREAD = math.asinh(8 * 32)  # scores beyond 32 are as good as certain


@plugin("multilabel")
class MultilabelHead(Head):
    """Say for every class whether the image has it; binary cross-entropy, mean average precision.

    Scores are counted in bins, so that they can be added up over images and ranks; the order of those in one
    bin is taken as random. Over a thousand images or more that is within 0.001 of sorting all scores.

    Options:
        pool: "token" or "mean", as for the linear head.
        bins: of the scores; the counts of a batch take 8 x images x classes x bins bytes.
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
        counts = torch.zeros(*scores.shape, 2 * self.bins, device=scores.device)
        counts.scatter_(2, (place + has * self.bins)[..., None], 1.0)
        return {
            "exact_match": (said == has).all(dim=1).float(),
            "counts": counts.view(*scores.shape, 2, self.bins),  # [B, C, 2, bins]: without and with the class
            "hits": (said & has).sum(dim=1).float(),
            "said": said.sum(dim=1).float(),
            "there": has.sum(dim=1).float(),
        }

    def summary(self, means: dict[str, Tensor]) -> dict[str, float]:
        """Classes that no image has are left out of ``map``."""
        precision = _average_precision(means["counts"])
        both, hits = float(means["said"] + means["there"]), float(means["hits"])
        kept = {name: float(means[name]) for name in means if name not in ("counts", "hits", "said", "there")}
        return {
            **kept,
            "map": float(precision.mean()) if len(precision) else 0.0,
            "micro_f1": 2 * hits / both if both else 0.0,
        }


def _average_precision(counts: Tensor) -> Tensor:
    """[C, 2, bins] shares of images -> [classes that are there] float64, expected over all orders within a bin."""
    falling = counts.double().flip(-1)  # from the highest score down
    wrong, right = falling.unbind(1)  # [C, bins]
    wrong_above, right_above = (part.cumsum(-1) - part for part in (wrong, right))
    some = falling[falling > 0]
    # Half an image. How many there were is not known; the smallest count is of one, unless all scores are alike.
    half = some.min().clamp(max=LARGEST) / 2 if len(some) else 0.0
    total = right.sum(-1)
    gained = torch.zeros_like(total)
    for part in range(PARTS):
        way = (part + 0.5) / PARTS  # through the bin
        found, passed = right_above + way * right + half, wrong_above + way * wrong
        gained += (right * found / (found + passed).clamp(min=1e-12)).sum(-1) / PARTS
    return gained[total > 0] / total[total > 0]
