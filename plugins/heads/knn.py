"""A vote of the nearest training images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from mae_pipe.api import Head, plugin

from .classification import Pool, accuracies, check_pool, pooled

CHUNK = 1 << 16  # images of the bank that are compared at once: what bounds the memory


@plugin("knn")
class KnnHead(Head):
    """Classify by the k nearest training images; nothing is trained (DINO, Caron et al. 2021; Wu et al. 2018).

    Each of them votes for its class with exp(cosine / temperature). A feature of every training image is kept
    in float32, from its centre view, so a result does not depend on ranks or batches.

    Options:
        k: how many vote; ``top1`` and ``top5`` are of it.
        others: more values of k, measured as ``top1_k10`` and so on.
        temperature: small: the nearest count most.
        pool: "token" or "mean", as for the linear head.
    """

    fits = True

    def __init__(
        self,
        *,
        width: int,
        classes: int,
        class_tokens: int = 1,
        k: int = 20,
        others: list[int] = [10, 100, 200],  # noqa: B006 (read only)
        temperature: float = 0.07,
        pool: Pool = "mean",
    ) -> None:
        super().__init__()
        check_pool(pool, class_tokens)
        if min([k, *others]) < 1 or temperature <= 0:
            raise ValueError(f"k must be at least 1 and temperature above 0, got {[k, *others]} and {temperature}")
        self.pool: Pool = pool
        self.class_tokens, self.classes, self.temperature = class_tokens, classes, temperature
        self.counts = [k, *(other for other in others if other != k)]
        self.register_buffer("bank", torch.zeros(0, width), persistent=False)  # [n, D] of length 1
        self.register_buffer("known", torch.zeros(0, dtype=torch.int64), persistent=False)  # [n] classes

    bank: Tensor
    known: Tensor

    def fit(self, features: Iterator[tuple[Tensor, Tensor]]) -> None:
        found = [(self._vector(tokens), labels) for tokens, labels in features]
        self.bank = torch.cat([vectors for vectors, _ in found])
        self.known = torch.cat([labels for _, labels in found])

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T + N, D] -> [B, values of k, C] float32: shares of the vote."""
        if not len(self.bank):
            return torch.full((len(tokens), len(self.counts), self.classes), 1 / self.classes, device=tokens.device)
        cosine, known = self._nearest(self._vector(tokens))
        # The largest cosine of an image is taken off, which changes no share and keeps the exponential small.
        # In float64 the order in which a GPU adds votes up does not show.
        votes = ((cosine - cosine[:, :1]).double() / self.temperature).exp()  # [B, near]
        empty = votes.new_zeros(len(votes), self.classes)
        sums = torch.stack([empty.scatter_add(1, known[:, :k], votes[:, :k]) for k in self.counts], dim=1)
        return (sums / sums.sum(dim=-1, keepdim=True)).float()

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        shares = output[:, 0].clamp(min=1e-6)
        if labels.dim() == 2:
            return -(shares.log() * labels).sum(dim=1)
        return F.nll_loss(shares.log(), labels, reduction="none")

    def metrics(self, output: Tensor, labels: Tensor) -> dict[str, Tensor]:
        found = accuracies(output[:, 0], labels)
        for number, k in enumerate(self.counts[1:], start=1):
            found[f"top1_k{k}"] = accuracies(output[:, number], labels)["top1"]
        return found

    def _nearest(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """[B, D] -> cosines and classes of the nearest of the bank, [B, near] each, the nearest first."""
        near = min(max(self.counts), len(self.bank))
        cosine = vectors.new_empty(len(vectors), 0)
        known = self.known.new_empty(len(vectors), 0)
        for start in range(0, len(self.bank), CHUNK):
            some = vectors @ self.bank[start : start + CHUNK].T  # [B, at most CHUNK]
            found, place = some.topk(min(near, some.shape[1]), dim=1)
            cosine, known = torch.cat([cosine, found], 1), torch.cat([known, self.known[start + place]], 1)
            cosine, place = cosine.topk(min(near, cosine.shape[1]), dim=1)
            known = known.gather(1, place)
        return cosine, known

    def _vector(self, tokens: Tensor) -> Tensor:
        return F.normalize(pooled(tokens, self.pool, self.class_tokens).float(), dim=1)
