"""What a job runs on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mae_pipe.machine import available_memory
from mae_pipe.planning.traffic import Links

GB = 1e9


@dataclass(frozen=True)
class Machines:
    """What a job runs on.

    Attributes:
        gpus: of a node; on "cpu": processes.
        memory, host: GB of a GPU, and of a node's own memory.
        rate: images a second of one GPU by itself; None: from ``tflops``.
        tflops: peak of one GPU in the recipe's precision; ``utilization``: the share of it that a run reaches.
    """

    gpus: int = 8
    nodes: int = 1
    memory: float = 80.0
    host: float = 1000.0
    links: Links = field(default_factory=Links)
    rate: float | None = None
    tflops: float | None = None
    utilization: float = 0.4
    device: Literal["cuda", "cpu"] = "cuda"

    def but(self, **known: Any) -> Machines:
        """The same with what is known of these; None: as they are."""
        return replace(self, **{name: value for name, value in known.items() if value is not None})

    @property
    def world(self) -> int:
        return self.gpus * self.nodes


def here(processes: int) -> Machines:
    """So many processes on this machine's processor, with the memory that is free."""
    return Machines(gpus=processes, memory=0.0, host=round(available_memory() / GB, 1), device="cpu")
