"""What the classification heads share: pooling, the loss, exact accuracies."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Pool = Literal["token", "mean"]


def check_pool(pool: str, class_tokens: int) -> None:
    """Raises ValueError for an unknown ``pool``, or one that the encoder has no token for."""
    if pool not in ("token", "mean"):
        raise ValueError(f"pool must be 'token' or 'mean', got {pool!r}")
    if pool == "token" and not class_tokens:
        raise ValueError("pool is 'token', but the encoder has no class token; set pool to 'mean'")


def pooled(tokens: Tensor, pool: Pool, class_tokens: int) -> Tensor:
    """[B, T + N, D] -> [B, D]: the mean of the class tokens (mostly one), or of the patch tokens."""
    return tokens[:, :class_tokens].mean(dim=1) if pool == "token" else tokens[:, class_tokens:].mean(dim=1)


def cross_entropy(output: Tensor, labels: Tensor) -> Tensor:
    """[B, C] and [B] int64 or [B, C] shares -> [B] float32."""
    return F.cross_entropy(output.float(), labels, reduction="none")


def accuracies(output: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """``top1`` and ``top5``, [B] float32 of 0 and 1; of mixed labels the largest share counts."""
    if labels.dim() == 2:
        labels = labels.argmax(dim=1)
    best = output.float().topk(min(5, output.shape[1]), dim=1).indices  # [B, 5]
    hits = best == labels[:, None]
    return {"top1": hits[:, 0].to(torch.float32), "top5": hits.any(dim=1).to(torch.float32)}
