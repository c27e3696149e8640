"""A tokenizer in training as one module: a batch in, a loss or its measures out."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor, nn

from mae_pipe.data.batch import Batch
from mae_pipe.pixels import Channels
from mae_pipe.recipe import Tokenizer
from mae_pipe.seeding import key
from mae_pipe.tokenizer.network import DiscreteVae, psnr


class Tokenizing(nn.Module):
    """Squared error of the reconstruction, over the images' variance, and the quantizer's own loss.

    Args:
        std: of each channel of the images, for pixels in [0, 1].
        temperature: of the first step, and where it falls to.
        steps: of the whole training.
        global_batch: images a step.
    """

    std: Tensor

    def __init__(
        self,
        network: DiscreteVae,
        *,
        std: Channels,
        temperature: tuple[float, float],
        steps: int,
        global_batch: int,
    ) -> None:
        super().__init__()
        self.network, self.temperature, self.steps, self.global_batch = network, temperature, steps, global_batch
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    @classmethod
    def from_recipe(cls, recipe: Tokenizer, steps: int) -> Tokenizing:
        """Built with first weights that depend on the recipe's seed alone, so that all ranks agree."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key(recipe.seed, "weights") % 2**63)
            network = DiscreteVae(recipe.tokenizer, len(recipe.data.mean))
        return cls(
            network,
            std=recipe.data.std,
            temperature=recipe.tokenizer.temperature,
            steps=steps,
            global_batch=recipe.data.global_batch,
        )

    @overload
    def forward(self, batch: Batch, mode: Literal["loss"] = "loss") -> Tensor: ...

    @overload
    def forward(self, batch: Batch, mode: Literal["metrics"]) -> dict[str, Tensor]: ...

    def forward(self, batch: Batch, mode: str = "loss") -> Tensor | dict[str, Tensor]:
        """A float32 scalar; or "colours" [B, C, H, W], "tokens" [B, h, w] and "psnr" [B] of evaluation."""
        colours = batch.pixels.float() / 255
        found: tuple[Tensor, Tensor, Tensor] = self.network(colours, self.temperature_of(batch.positions))
        made, tokens, own = found
        if mode == "loss":
            return ((made - colours) / self.std).square().mean() + own.float()
        made = made.clamp(0, 1)
        return {"colours": made, "tokens": tokens, "psnr": psnr(made, colours)}

    def temperature_of(self, positions: Tensor) -> Tensor:
        """A scalar on the positions' device, the same for a whole step: it falls geometrically."""
        step = positions.min() // self.global_batch
        share = (step.float() / max(1, self.steps - 1)).clamp(max=1)
        first, last = self.temperature
        return first * (last / first) ** share
