"""An average of the trained weights over the steps, part by part where ZeRO keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mae_pipe.engine import state


class Average:
    """Beside every float32 partition of this rank one that follows it: a = decay x a + (1 - decay) x weights.

    It begins as the weights do. Since it lies as they lie, checkpoints hold it as one more kind of numbers.

    Args:
        engine: DeepSpeed's.
        decay: in [0, 1).
    """

    def __init__(self, engine: Any, decay: float) -> None:
        self.engine, self.decay = engine, decay
        self.flats: list[Tensor] = [flat.detach().clone() for flat in state.flats(engine.optimizer)]

    @torch.no_grad()
    def update(self) -> None:
        """After a step."""
        for mean, flat in zip(self.flats, state.flats(self.engine.optimizer), strict=True):
            mean.lerp_(flat, 1 - self.decay)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The model computes with the average; afterwards with the weights, to the last bit. All ranks call it.

        Where what is done meanwhile fails the weights are not put back: that takes all ranks, and the run ends.
        """
        self._exchange()
        yield
        self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for mean, flat in zip(self.flats, state.flats(self.engine.optimizer), strict=True):
            weights = flat.clone()
            flat.copy_(mean)
            mean.copy_(weights)
        state.renew_working_weights(self.engine)
