"""Continuous maps become tokens: by the nearest code of a book, or by a sample of a softmax."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from mae_pipe.precision import keep_float32


class Quantizer(nn.Module, ABC):
    """What stands between encoder and decoder.

    Attributes:
        channels_in, channels_out: of the maps that it takes and gives.
    """

    channels_in: int
    channels_out: int

    @abstractmethod
    def forward(self, maps: Tensor, temperature: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """[B, in, h, w] -> [B, out, h, w] with gradients, [B, h, w] int64 tokens, and a scalar loss of its own."""

    @abstractmethod
    def tokens(self, maps: Tensor) -> Tensor:
        """[B, in, h, w] -> [B, h, w] int64, without chance."""

    @abstractmethod
    def look_up(self, tokens: Tensor) -> Tensor:
        """[B, h, w] int64 -> [B, out, h, w]."""


class VectorQuantizer(Quantizer):
    """The nearest code by cosine; codes are moving means of what they stand for (van den Oord et al. 2017, A.1).

    Codes and maps have length 1 (ViT-VQGAN, Yu et al. 2022). A code that nobody has used for long is dead
    and is set to a vector of the batch; at first all are. Ranks add their sums up, so their books are equal.

    Args:
        size: of the codebook.
        width: numbers a code; small, so that most codes are used.
        decay: of the moving means, a batch.
        commitment: weight of the loss that keeps maps near their codes.
        alive: a code that stands for fewer vectors than this share of an even use is dead.
    """

    codes: Tensor
    uses: Tensor
    sums: Tensor

    def __init__(
        self, size: int, width: int, *, decay: float = 0.99, commitment: float = 0.25, alive: float = 0.05
    ) -> None:
        super().__init__()
        self.channels_in = self.channels_out = width
        self.decay, self.commitment, self.alive = decay, commitment, alive
        codes = F.normalize(torch.randn(size, width), dim=1)
        self.register_buffer("codes", codes)
        self.register_buffer("uses", torch.zeros(size))  # moving count of vectors a batch, over all ranks
        self.register_buffer("sums", torch.zeros(size, width))  # moving sum of them

    def forward(self, maps: Tensor, temperature: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        vectors = F.normalize(maps.float(), dim=1)  # [B, d, h, w]
        if self.training:
            self._revive(vectors.detach())
        tokens = self._nearest(vectors)
        chosen = self.look_up(tokens)
        if self.training:
            self._learn(vectors.detach(), tokens)
        loss = self.commitment * (vectors - chosen).square().sum(dim=1).mean()
        return vectors + (chosen - vectors).detach(), tokens, loss

    def tokens(self, maps: Tensor) -> Tensor:
        return self._nearest(F.normalize(maps.float(), dim=1))

    def look_up(self, tokens: Tensor) -> Tensor:
        return self.codes[tokens].permute(0, 3, 1, 2)

    @torch.no_grad()
    def _nearest(self, vectors: Tensor) -> Tensor:
        return torch.einsum("bdhw,kd->bkhw", vectors, self.codes).argmax(dim=1)

    @torch.no_grad()
    def _learn(self, vectors: Tensor, tokens: Tensor) -> None:
        flat, numbers = vectors.permute(0, 2, 3, 1).flatten(0, 2), tokens.flatten()
        sums = torch.zeros(len(self.codes), flat.shape[1] + 1, device=flat.device)
        sums.index_add_(0, numbers, torch.cat([flat, torch.ones_like(flat[:, :1])], dim=1))
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
        self.sums.lerp_(sums[:, :-1], 1 - self.decay)
        self.uses.lerp_(sums[:, -1], 1 - self.decay)
        used = self.uses > 0
        self.codes[used] = F.normalize(self.sums[used], dim=1)

    @torch.no_grad()
    def _revive(self, vectors: Tensor) -> None:
        """Set dead codes to vectors of rank 0's batch, which are drawn from torch's generator."""
        flat = vectors.permute(0, 2, 3, 1).flatten(0, 2)
        world = dist.get_world_size() if dist.is_initialized() else 1
        even = len(flat) * world / len(self.codes)
        dead = self.uses < self.alive * even  # equal on all ranks
        grace = (
            3 * self.alive * even
        )  # a revived code has so many uses to begin with: 1.1 / (1 - decay) batches of time
        drawn = flat[torch.randint(len(flat), (len(self.codes),)).to(flat.device)]
        if world > 1:
            dist.broadcast(drawn, 0)
        self.codes.copy_(torch.where(dead[:, None], drawn, self.codes))
        self.sums.copy_(torch.where(dead[:, None], drawn * grace, self.sums))
        self.uses.copy_(torch.where(dead, grace, self.uses))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VectorQuantizer:
        keep_float32(self, partial(super()._apply, fn, recurse))
        return self


class GumbelQuantizer(Quantizer):
    """A sample of a softmax over the codes, relaxed in training (Jang et al. 2017; DALL-E, Ramesh et al. 2021).

    Args:
        size: of the codebook.
        width: numbers a code.
        divergence: weight of the KL divergence from an even use of the codes, which keeps them in use.
    """

    def __init__(self, size: int, width: int, *, divergence: float = 1e-3) -> None:
        super().__init__()
        self.channels_in, self.channels_out, self.divergence = size, width, divergence
        self.codes = nn.Embedding(size, width)

    def forward(self, maps: Tensor, temperature: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        logits = maps.float()  # [B, K, h, w]
        if self.training:
            noise = -torch.empty_like(logits).exponential_().log()
            soft = ((logits + noise) / temperature).softmax(dim=1)
        else:
            soft = F.one_hot(logits.argmax(dim=1), logits.shape[1]).permute(0, 3, 1, 2).to(logits.dtype)
        mixed = torch.einsum("bkhw,kd->bdhw", soft.to(self.codes.weight.dtype), self.codes.weight)
        share = F.log_softmax(logits, dim=1)
        loss = (share.exp() * (share + math.log(logits.shape[1]))).sum(dim=1).mean()
        return mixed, logits.argmax(dim=1), self.divergence * loss

    def tokens(self, maps: Tensor) -> Tensor:
        return maps.argmax(dim=1)

    def look_up(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.codes(tokens)
        return found.permute(0, 3, 1, 2)
