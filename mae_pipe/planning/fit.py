"""Which setting of a recipe fits into the memory that there is, and costs least."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from mae_pipe.engine_tables import EngineChoice
from mae_pipe.planning.memory import Memory

USABLE = 0.9  # of a GPU's memory: the rest is CUDA's own, the collectives' and what lies between tensors


@dataclass(frozen=True)
class Setting:
    """What a recipe may change to need less memory; the first weights and the images of a step stay the same."""

    zero: int
    micro_batch: int
    checkpoint_blocks: int = 0
    offload_optimizer: bool = False
    offload_parameters: bool = False

    def engine(self, base: EngineChoice) -> EngineChoice:
        """The recipe's own table with this setting in it."""
        return base.model_copy(
            update={
                "zero": self.zero,
                "checkpoint_blocks": self.checkpoint_blocks,
                "offload_optimizer": "cpu" if self.offload_optimizer else "none",
                "offload_parameters": "cpu" if self.offload_parameters else "none",
            }
        )

    def changes(self) -> list[str]:
        """For ``--set``."""
        found = [f"engine.zero={self.zero}", f"data.micro_batch={self.micro_batch}"]
        if self.checkpoint_blocks:
            found.append(f"engine.checkpoint_blocks={self.checkpoint_blocks}")
        found += ["engine.offload_optimizer=cpu"] if self.offload_optimizer else []
        return found + (["engine.offload_parameters=cpu"] if self.offload_parameters else [])


def rungs(blocks: int) -> Iterator[Setting]:
    """Settings from the cheapest to the dearest; each with micro-batch 1.

    ZeRO 1 talks once a step and keeps all gradients; ZeRO 2 talks in every micro-batch; recomputing costs another
    forward pass; ZeRO 3 gathers weights in every micro-batch; offload moves numbers through the host.
    """
    yield Setting(1, 1)
    yield Setting(2, 1)
    yield Setting(1, 1, blocks)
    yield Setting(2, 1, blocks)
    yield Setting(3, 1, blocks)
    yield Setting(2, 1, blocks, offload_optimizer=True)
    yield Setting(3, 1, blocks, offload_optimizer=True)
    yield Setting(3, 1, blocks, offload_optimizer=True, offload_parameters=True)


def divisors(share: int, most: int) -> list[int]:
    """Micro-batches that divide a rank's share, the largest first, none above ``most``."""
    return [m for m in range(min(share, most), 0, -1) if share % m == 0]


def cheapest(
    settings: Iterable[Setting],
    micro_batches: list[int],
    need: Callable[[Setting], Memory],
    fits: Callable[[Memory], bool],
) -> Setting | None:
    """The first of ``settings`` that fits, at the largest micro-batch that does; None: nothing fits.

    Tiny micro-batches leave a GPU idle, so what fits only below an eighth of the largest wanted is left for a later
    setting that holds more; but nothing is offloaded for that.

    Args:
        micro_batches: from the largest to the smallest.
        need: a setting's memory.
        fits: whether there is that much.
    """
    small: list[Setting] = []
    for setting in settings:
        if small and setting.offload_optimizer:
            break
        for micro in micro_batches:
            tried = replace(setting, micro_batch=micro)
            if fits(need(tried)):
                if micro * 8 >= micro_batches[0]:
                    return tried
                small.append(tried)
                break
    return max(small, key=lambda one: one.micro_batch, default=None)
