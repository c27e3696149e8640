"""One linear layer on an encoder's tokens."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from mae_pipe.api import Head, plugin

from .classification import Pool, accuracies, check_pool, cross_entropy, pooled


class FloatBatchNorm(nn.BatchNorm1d):
    """Batch norm without scale and shift whose running statistics stay float32 in any engine."""

    def __init__(self, width: int) -> None:
        super().__init__(width, affine=False, eps=1e-6)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.float())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FloatBatchNorm:
        kept = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in kept.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self


@plugin("linear")
class LinearHead(Head):
    """Classify the class token (``token``) or the mean of the patch tokens (``mean``).

    MAE's linear probe is ``pool = "token", batch_norm = true`` (He et al. 2022, A.1). Its finetuning is
    ``pool = "mean", layer_norm = true, std = 2e-5``: the encoder's own norm is not applied, the mean of the
    patch tokens is normed instead. Biases begin at zero, as the official code's do.

    Options:
        pool: "token" (of several class tokens their mean), or "mean".
        batch_norm: batch norm without scale and shift before the layer.
        layer_norm: a new layer norm before the layer; of the mean, it is instead of the encoder's.
        std: of the first weights.
    """

    def __init__(
        self,
        *,
        width: int,
        classes: int,
        class_tokens: int = 1,
        pool: Pool = "mean",
        batch_norm: bool = False,
        layer_norm: bool = False,
        std: float = 0.01,
    ) -> None:
        super().__init__()
        if batch_norm and layer_norm:
            raise ValueError("batch_norm and layer_norm cannot both be set; one norm is enough")
        check_pool(pool, class_tokens)
        self.pool: Pool = pool
        self.class_tokens = class_tokens
        self.normed = not (layer_norm and pool == "mean")
        self.norm: nn.Module = nn.LayerNorm(width, eps=1e-6) if layer_norm else nn.Identity()
        if batch_norm:
            self.norm = FloatBatchNorm(width)
        self.classify = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.classify.weight, std=std)
        nn.init.zeros_(self.classify.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        features = self.norm(pooled(tokens, self.pool, self.class_tokens))  # [B, D]
        output: Tensor = self.classify(features.to(self.classify.weight.dtype))
        return output

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(output, labels)

    def metrics(self, output: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return accuracies(output, labels)
