"""Memory of a rank, from what DeepSpeed 0.19.8 allocates as our engine configures it.

N numbers are trained on W ranks; s = N / W. Low precision (bf16, fp16) has weights of 2 bytes a number and keeps
float32 ones beside them. Every line below was compared with counted tensors (``tools/measure_states.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mae_pipe.engine_tables import EngineChoice

if TYPE_CHECKING:
    from mae_pipe.planning.activations import Weights

REDUCE = 500_000_000  # numbers: DeepSpeed's own reduce_bucket_size
FLAT = 500_000_000  # numbers of a sum over ranks at stage 1 in bf16
LIVE = 500_000_000  # numbers that ZeRO 3 keeps whole from forward to backward: half of its max_reuse_distance
PREFETCH = 50_000_000
SUB_GROUP = 1_000_000_000  # numbers that ZeRO 3 steps at once
MASTER = 12  # bytes a number: float32 weight and AdamW's two moments


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank; ``device`` is the most at any time of a step.

    Attributes:
        states: weights, float32 weights and moments, buffers, that stay on the device.
        gradients: what is summed over the micro-batches.
        activations: of one micro-batch.
        temporary: buckets, gathered weights, what a step takes.
        host: of a rank, in the machine's memory, by offload.
    """

    states: int
    gradients: int
    activations: int
    temporary: int
    host: int

    @property
    def device(self) -> int:
        return self.states + self.gradients + self.activations + self.temporary


def memory(
    weights: Weights,
    engine: EngineChoice,
    *,
    world: int,
    activations: int,
    accumulation: int,
    device: Literal["cuda", "cpu"] = "cuda",
) -> Memory:
    """The memory of one rank of ``world``.

    Args:
        activations: of a micro-batch, bytes.
        accumulation: micro-batches of a step.
        device: on "cpu" pages of a bucket that nothing is written to take no memory.
    """
    n, s = weights.parameters, -(-weights.parameters // world)
    w = 4 if engine.precision == "fp32" else 2
    r = 4 if engine.precision == "fp32" or engine.reduce_dtype == "fp32" else w  # bytes of a number that is summed
    off = engine.offload_optimizer != "none"
    bucket = engine.reduce_bucket or REDUCE
    full = min(n, bucket)  # of it that is used
    held = full if device == "cpu" else bucket
    host = 0 if not off else MASTER * s + 4 * s
    # Of a bucket that is full before the backward pass ends, activations are still there.
    left = round(activations * (1 - full / n))
    if engine.zero == 3:
        stay, states = w * s, 0 if off else MASTER * s
        gradients = 0 if off else 4 * s
        host += 4 * s if off else 0
        if engine.offload_parameters != "none":
            host, stay = host + w * s, 0
        whole = w * (min(n, LIVE) + min(n, engine.prefetch_bucket or PREFETCH))
        if world == 1 and (stay or device == "cpu"):
            whole = 0  # there is nothing to gather
        flush = (2 if world == 1 else 1) * r * full
        passes = r * held + whole + max(activations, left + flush)
        step = r * held + 4 * min(s, SUB_GROUP) if not off else 0
        return _of(weights, stay + states, gradients, activations, passes, step, host)
    if engine.zero == 1 and engine.precision == "bf16" and not off:  # DeepSpeed's BF16_Optimizer
        low = 2 * n
        flat = min(n, FLAT)
        passes = max(activations, low) if accumulation == 1 else activations + low
        step = low + (4 if r == 4 else 6) * flat
        return _of(weights, 2 * n + MASTER * s, 4 * n, activations, passes, step, 0)
    states = w * n + (0 if off else MASTER * s)
    host += w * s if off else 0
    small = 4 * weights.largest if off else 0
    if engine.zero == 1:  # gradients stay whole, and are summed by buckets when the step begins
        passes = activations + (r * held if accumulation > 1 else 0)  # the bucket stays until the step
        step = 4 * s + r * held
        return _of(weights, states, 4 * n, activations, passes + small, step + small, host)
    gradients = 0 if off else 4 * s
    flush = (w + (r if r != w else 0)) * full
    passes = w * held + max(activations, left + flush) + (4 * s if off else 0)
    step = 4 * s if w == 4 and not off else 0  # gradients once more, in one piece; in bf16 they fit into what is freed
    return _of(weights, states, gradients, activations, passes + small, step + small, host)


def _of(weights: Weights, states: int, gradients: int, activations: int, passes: int, step: int, host: int) -> Memory:
    """``passes`` and ``step``: the most of forward and backward, activations with them, and of the step."""
    most = max(passes, step)
    return Memory(states + weights.others, gradients, activations, max(0, most - activations), host)
