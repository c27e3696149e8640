"""What a process on a CPU takes in all, where a GPU's memory and the host's are the same."""

from __future__ import annotations

from mae_pipe.engine_tables import EngineChoice
from mae_pipe.planning.activations import Weights
from mae_pipe.planning.memory import MASTER, Memory

BASE = 1_000_000_000  # bytes of Python, torch, timm and DeepSpeed with their libraries; 0.93e9 to 1.07e9 measured


def process(weights: Weights, engine: EngineChoice, needed: Memory, *, world: int, background: bool) -> int:
    """The most bytes that are resident in one of ``world`` processes at any time of a run.

    Before the first step it has the float32 model, on rank 0 with gradients, for the checks; in a step what ``needed``
    says; and while a checkpoint is written in the background a copy of its part, beside what stays between steps.
    """
    begin = 8 * weights.parameters + weights.others
    step = needed.device + needed.host
    between = needed.states + needed.gradients + needed.host
    saving = between + (MASTER * weights.parameters // world if background else 0)
    return BASE + max(begin, step, saving)
