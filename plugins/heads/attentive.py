"""Attention pooling, then one linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_pipe.api import Head, plugin

from .classification import accuracies, cross_entropy


@plugin("attentive")
class AttentiveHead(Head):
    """Classify what a learned query attends to among all tokens (CAE, Chen et al. 2022; V-JEPA, Bardes et al. 2024).

    Options:
        heads: of the attention; must divide the encoder's width; 0: the most of 12, 8, 6, 4, 3, 2 and 1 that do.
        queries: learned ones; their answers are averaged.
        std: of the first weights.
    """

    def __init__(self, *, width: int, classes: int, heads: int = 0, queries: int = 1, std: float = 0.02) -> None:
        super().__init__()
        heads = heads or next(n for n in (12, 8, 6, 4, 3, 2, 1) if width % n == 0)
        if heads < 1 or width % heads or queries < 1:
            raise ValueError(
                f"heads must divide the width {width} and queries be at least 1, got {heads} and {queries}"
            )
        self.heads = heads
        self.queries = nn.Parameter(torch.empty(1, queries, width))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.keys_and_values = nn.Linear(width, 2 * width)
        self.mix = nn.Linear(width, width)
        self.last = nn.LayerNorm(width, eps=1e-6)
        self.classify = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.queries, std=std)
        for layer in (self.keys_and_values, self.mix, self.classify):
            nn.init.trunc_normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        tokens = self.norm(tokens.to(self.norm.weight.dtype))
        both = self.keys_and_values(tokens).reshape(batch, count, 2, self.heads, width // self.heads)
        keys, values = both.permute(2, 0, 3, 1, 4)  # [B, heads, T + N, D / heads] each
        queries = self.queries.reshape(1, -1, self.heads, width // self.heads).transpose(1, 2)
        found = F.scaled_dot_product_attention(queries.expand(batch, -1, -1, -1).to(keys.dtype), keys, values)
        answer = self.mix(found.transpose(1, 2).reshape(batch, -1, width)).mean(dim=1)  # [B, D]
        output: Tensor = self.classify(self.last(answer))
        return output

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(output, labels)

    def metrics(self, output: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return accuracies(output, labels)
