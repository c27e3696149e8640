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

SHARPNESS = 10.0  # of the Gumbel-softmax, to begin with: what a cosine of 1 weighs


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

    def after_step(self) -> None:
        """Learn what no gradient teaches, of all micro-batches of a step. All ranks call it."""

    @abstractmethod
    def tokens(self, maps: Tensor) -> Tensor:
        """[B, in, h, w] -> [B, h, w] int64, without chance."""

    @abstractmethod
    def look_up(self, tokens: Tensor) -> Tensor:
        """[B, h, w] int64 -> [B, out, h, w]."""


class VectorQuantizer(Quantizer):
    """The nearest code by cosine; codes are moving means of what they stand for (van den Oord et al. 2017, A.1).

    Codes and maps have length 1 (ViT-VQGAN, Yu et al. 2022). A code that nobody has used for long is dead
    and is set to a vector of the step; at first all are. Sums are over all micro-batches and ranks of a step, in
    float64, so that neither weighs in and all ranks have the same book.

    Args:
        size: of the codebook.
        width: numbers a code; small, so that most codes are used.
        decay: of the moving means, a step.
        commitment: weight of the loss that keeps maps near their codes.
        alive: a code that stands for fewer vectors than this share of an even use is dead.
    """

    codes: Tensor
    uses: Tensor
    sums: Tensor
    pending: Tensor

    def __init__(
        self, size: int, width: int, *, decay: float = 0.99, commitment: float = 0.25, alive: float = 0.05
    ) -> None:
        super().__init__()
        self.channels_in = self.channels_out = width
        self.decay, self.commitment, self.alive = decay, commitment, alive
        self.register_buffer("codes", F.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("uses", torch.zeros(size))  # moving count of vectors a step, over all ranks
        self.register_buffer("sums", torch.zeros(size, width))  # moving sum of them
        pending = torch.zeros(size, width + 1, dtype=torch.float64)  # this rank's sums and counts since the last step
        self.register_buffer("pending", pending, persistent=False)
        self._newest: Tensor | None = None  # [n, width]: vectors that may take a dead code's place

    def forward(self, maps: Tensor, temperature: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        vectors = F.normalize(maps.float(), dim=1)  # [B, d, h, w]
        tokens = self._nearest(vectors)
        chosen = self.look_up(tokens)
        if self.training:
            self._note(vectors.detach(), tokens)
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
    def _note(self, vectors: Tensor, tokens: Tensor) -> None:
        self._newest = vectors.permute(0, 2, 3, 1).flatten(0, 2)
        counted = torch.cat([self._newest, torch.ones_like(self._newest[:, :1])], dim=1)
        self.pending.index_add_(0, tokens.flatten(), counted.double())

    @torch.no_grad()
    def after_step(self) -> None:
        several = dist.is_initialized() and dist.get_world_size() > 1
        if several:
            dist.all_reduce(self.pending)
        sums, counts = self.pending[:, :-1].float(), self.pending[:, -1].float()
        whole = sums.isfinite().all()  # a step that went wrong is skipped, here as by the optimizer
        self.sums.copy_(torch.where(whole, self.sums.lerp(sums, 1 - self.decay), self.sums))
        self.uses.copy_(torch.where(whole, self.uses.lerp(counts, 1 - self.decay), self.uses))
        self.codes.copy_(torch.where(self.uses[:, None] > 0, F.normalize(self.sums, dim=1), self.codes))
        if self._newest is not None:
            places = _drawn(len(self._newest), len(self.codes)).to(self._newest.device)
            fresh = self._newest[places]  # [K, d]
            if several:
                dist.broadcast(fresh, 0)
            self._revive(fresh, counts.sum() / len(self.codes))
        self.pending.zero_()

    def _revive(self, fresh: Tensor, even: Tensor) -> None:
        """Set dead codes to ``fresh`` ones; ``even`` is the number of vectors that each would have in even use."""
        dead = (self.uses < self.alive * even) & fresh.isfinite().all(dim=1)  # equal on all ranks
        grace = 3 * self.alive * even  # uses to begin with: they last for 1.1 / (1 - decay) steps
        self.codes.copy_(torch.where(dead[:, None], fresh, self.codes))
        self.sums.copy_(torch.where(dead[:, None], fresh * grace, self.sums))
        self.uses.copy_(torch.where(dead, grace, self.uses))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VectorQuantizer:
        keep_float32(self, partial(super()._apply, fn, recurse))
        return self


class GumbelQuantizer(Quantizer):
    """A sample of a softmax over the codes, relaxed in training (Jang et al. 2017; DALL-E, Ramesh et al. 2021).

    DALL-E's encoder gives a number for each code. Here they are cosines with the codes that the decoder sees,
    times a learned factor: from the first step on, a code is likely where it would fit. (Perplexity of 512 codes
    after 90 steps on Imagenette: 4 with free numbers, 33 with cosines.)

    Args:
        size: of the codebook.
        width: numbers a code.
        divergence: weight of the KL divergence from an even use of the codes, which keeps them in use.
    """

    def __init__(self, size: int, width: int, *, divergence: float = 1e-3) -> None:
        super().__init__()
        self.channels_in = self.channels_out = width
        self.divergence = divergence
        self.codes = nn.Parameter(torch.randn(size, width))  # of any length: only directions count
        self.sharpness = nn.Parameter(torch.full((1,), math.log(SHARPNESS)))  # of its exponential

    def forward(self, maps: Tensor, temperature: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        logits = self._logits(maps)  # [B, K, h, w]
        tokens = logits.argmax(dim=1)
        share = F.log_softmax(logits, dim=1)
        loss = (share.exp() * (share + math.log(logits.shape[1]))).sum(dim=1).mean()
        if not self.training:
            return self.look_up(tokens), tokens, self.divergence * loss
        noise = -torch.empty_like(logits).exponential_().log()
        soft = ((logits + noise) / temperature).softmax(dim=1)
        return torch.einsum("bkhw,kd->bdhw", soft, self._directions()), tokens, self.divergence * loss

    def tokens(self, maps: Tensor) -> Tensor:
        return self._logits(maps).argmax(dim=1)

    def look_up(self, tokens: Tensor) -> Tensor:
        return self._directions()[tokens].permute(0, 3, 1, 2)

    def _directions(self) -> Tensor:
        return F.normalize(self.codes.float(), dim=1)

    def _logits(self, maps: Tensor) -> Tensor:
        cosines = torch.einsum("bdhw,kd->bkhw", F.normalize(maps.float(), dim=1), self._directions())
        return self.sharpness.float().exp() * cosines


def _drawn(many: int, wanted: int) -> Tensor:
    """``wanted`` places of ``many``, by torch's generator; none twice where there are enough."""
    return torch.randperm(many)[:wanted] if many >= wanted else torch.randint(many, (wanted,))
