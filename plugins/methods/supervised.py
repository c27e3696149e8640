"""Supervised training from scratch."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from mae_pipe.api import Batch, Method, Mixer, Mixing, View, erased, plugin

from ..heads.classification import (  # noqa: TID252 (the package has two names: where it lies, and as installed)
    Pool,
    accuracies,
    check_pool,
    cross_entropy,
    pooled,
)


@plugin("supervised")
class Supervised(Method):
    """Learn the classes of labelled images, so that the encoder is judged as those that learned without.

    Images and labels are erased, mixed and smoothed as in finetuning, with the same random numbers. Stochastic depth
    and dropout are ``encoder.drop_path`` and ``encoder.dropout``.

    Options:
        pool: what is classified: "token" (of several class tokens their mean), or "mean" of the patch tokens.
        std: of the classifier's first weights.
        label_smoothing: share of each label that is spread over all classes.
        mixup: alpha of mixup of a micro-batch with itself in reverse order; 0: off.
        cutmix: the same of CutMix.
        mixing_probability: that a micro-batch is mixed at all.
        mixing_switch: that it is CutMix, where both are on.
        erase: probability that a box of an image becomes noise.
    """

    labelled = True
    encoder: Any

    def __init__(
        self,
        encoder: nn.Module,
        *,
        classes: int,
        pool: Pool = "token",
        std: float = 0.01,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mixing_probability: float = 1.0,
        mixing_switch: float = 0.5,
        erase: float = 0.0,
    ) -> None:
        super().__init__()
        shares = {"label_smoothing": label_smoothing, "erase": erase, "mixing_switch": mixing_switch}
        for name, share in (shares | {"mixing_probability": mixing_probability}).items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {share}")
        if min(mixup, cutmix, std) < 0:
            raise ValueError(f"mixup, cutmix and std must be 0 or more, got {mixup}, {cutmix} and {std}")
        self.encoder = encoder
        check_pool(pool, self.encoder.num_prefix_tokens)
        self.pool: Pool = pool
        self.classes, self.label_smoothing, self.erase = classes, label_smoothing, erase
        self.mixing = Mixing(mixup=mixup, cutmix=cutmix, probability=mixing_probability, switch=mixing_switch)
        self.classify = nn.Linear(self.encoder.embed_dim, classes)
        nn.init.trunc_normal_(self.classify.weight, std=std)
        nn.init.zeros_(self.classify.bias)
        self._last: dict[str, Tensor] = {}

    def bind(self, *, view: View, seed: int) -> Self:
        """Also what draws how labels are mixed."""
        self._mixer = Mixer(self.mixing, classes=self.classes, smoothing=self.label_smoothing, seed=seed)
        return super().bind(view=view, seed=seed)

    def loss(self, batch: Batch) -> Tensor:
        """The mean cross-entropy."""
        (images,), labels = self.images_of(batch), batch.labels
        if self.training and self.erase:
            images = erased(images, self.rng(batch, "erase"), self.erase)
        if self.training and self.mixing.on:
            images, labels = self._mixer(images, labels, batch.positions)
        elif self.label_smoothing:
            labels = self._mixer.shares(labels)
        output = self.classify(pooled(self.encoder(images), self.pool, self.encoder.num_prefix_tokens))  # [B, classes]
        loss = cross_entropy(output, labels).mean()
        if self.training:
            self._last = {"loss": loss.detach(), "top1": accuracies(output.detach(), labels)["top1"].mean()}
        return loss

    def signs(self) -> dict[str, float]:
        """Loss and top-1 of the last micro-batch of training; of mixed labels the largest share counts."""
        return {name: float(value) for name, value in self._last.items()}

    def features(self, images: Tensor) -> Tensor:
        """What is classified: [B, D] float32."""
        return pooled(self.encoder(images), self.pool, self.encoder.num_prefix_tokens).to(torch.float32)
