"""Two linear layers on an encoder's tokens."""

from __future__ import annotations

from torch import Tensor, nn

from mae_pipe.api import Head, plugin

from .classification import Pool, accuracies, check_pool, cross_entropy, pooled


@plugin("mlp")
class MlpHead(Head):
    """Classify with one hidden layer of ``hidden`` numbers (0: as wide as the encoder) and GELU."""

    def __init__(
        self, *, width: int, classes: int, pool: Pool = "mean", hidden: int = 0, dropout: float = 0.0, std: float = 0.02
    ) -> None:
        super().__init__()
        check_pool(pool)
        if hidden < 0:
            raise ValueError(f"hidden must be 0 or more, got {hidden}")
        self.pool: Pool = pool
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
        output: Tensor = self.layers(pooled(tokens, self.pool))
        return output

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(output, labels)

    def metrics(self, output: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return accuracies(output, labels)
