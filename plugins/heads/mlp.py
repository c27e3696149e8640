"""Two linear layers on an encoder's tokens."""

from __future__ import annotations

from torch import Tensor, nn

from mae_pipe.api import Head, plugin

from .classification import Pool, accuracies, check_pool, cross_entropy, pooled


@plugin("mlp")
class MlpHead(Head):
    """Classify with one hidden layer and GELU.

    Options:
        pool: "token" or "mean", as for the linear head.
        hidden: numbers of the hidden layer; 0: as many as the encoder's.
        dropout: share of hidden numbers that are dropped in training.
        std: of the first weights.
    """

    def __init__(
        self,
        *,
        width: int,
        classes: int,
        class_tokens: int = 1,
        pool: Pool = "mean",
        hidden: int = 0,
        dropout: float = 0.0,
        std: float = 0.02,
    ) -> None:
        super().__init__()
        check_pool(pool, class_tokens)
        if hidden < 0:
            raise ValueError(f"hidden must be 0 or more, got {hidden}")
        self.pool: Pool = pool
        self.class_tokens = class_tokens
        hidden = hidden or width
        self.layers = nn.Sequential(
            nn.LayerNorm(width, eps=1e-6),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=std)
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.layers(pooled(tokens, self.pool, self.class_tokens))
        return output

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(output, labels)

    def metrics(self, output: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return accuracies(output, labels)
