"""What ranks send each other, and how long a step takes on many of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mae_pipe.engine_tables import EngineChoice
from mae_pipe.planning.memory import LIVE


@dataclass(frozen=True)
class Traffic:
    """Bytes of the tensors that are handed to collectives, of one rank in one optimizer step.

    Attributes:
        summed: gradients that are summed so that every rank has all of the sum (stages 1 and 2, also where a rank
            keeps its part only), a ring sends each byte 2 (W - 1) / W times.
        scattered: gradients of which a rank gets its part of the sum, (W - 1) / W times.
        gathered: weights that ranks gather, (W - 1) / W times.
    """

    summed: int
    scattered: int
    gathered: int

    def sent(self, world: int) -> float:
        """Bytes that a rank sends in a step, round a ring."""
        return (2 * self.summed + self.scattered + self.gathered) * (world - 1) / world


def traffic(parameters: int, engine: EngineChoice, accumulation: int) -> Traffic:
    """Of one step of ``accumulation`` micro-batches.

    Stage 1 sums once a step. Stage 2 as DeepSpeed 0.19.8 does it sums after every micro-batch, and sends all of the
    sum to all ranks. Stage 3 gathers weights in every micro-batch, and those that it did not keep once more in the
    backward pass, and sends each rank its part of the sum.
    """
    low = engine.precision != "fp32"
    weight = 2 if low else 4
    number = 2 if low and engine.reduce_dtype == "precision" else 4
    if engine.zero == 3:
        again = max(0, parameters - LIVE)
        return Traffic(0, number * parameters * accumulation, weight * (parameters + again) * accumulation)
    sums = 1 if engine.zero == 1 else accumulation
    return Traffic(number * parameters * sums, 0, weight * parameters)


@dataclass(frozen=True)
class Links:
    """GB/s: ``inside`` of a GPU to others of its node, ``between`` of a node to the others; ``gpus`` of a node."""

    gpus: int = 8
    inside: float = 300.0
    between: float = 50.0

    def seconds(self, found: Traffic, world: int) -> float:
        """Of a step's collectives: the slower of the rings inside the nodes and of those between them."""
        nodes = -(-world // self.gpus)
        return max(
            found.sent(world) / (self.inside * 1e9),
            found.sent(nodes) / (self.between * 1e9) if nodes > 1 else 0.0,
        )


@dataclass(frozen=True)
class Step:
    """A step on ``world`` GPUs; seconds.

    Attributes:
        images_per_second: of all.
        efficiency: of what as many GPUs would do that need not talk.
    """

    world: int
    micro_batch: int
    accumulation: int
    compute: float
    talk: float
    images_per_second: float
    efficiency: float


def step(
    parameters: int,
    engine: EngineChoice,
    links: Links,
    *,
    world: int,
    global_batch: int,
    micro_batch: int,
    rate: float,
) -> Step:
    """One step's time: compute, and the part of the collectives that it does not hide.

    Args:
        rate: images a second of one GPU by itself, at this micro-batch.

    With ``engine.overlap_comm`` stages 2 and 3 sum while the backward pass goes on, two thirds of the compute; else,
    and at stage 1, nothing is hidden. What many ranks wait for each other is not in it, nor latency.
    """
    share = global_batch // world
    micro = next(m for m in range(min(micro_batch, share), 0, -1) if share % m == 0)
    compute = share / rate
    talk = links.seconds(traffic(parameters, engine, share // micro), world)
    hidden = min(talk, compute * 2 / 3) if engine.overlap_comm and engine.zero > 1 else 0.0
    seconds = compute + talk - hidden
    return Step(world, micro, share // micro, compute, talk, global_batch / seconds, compute / seconds)


def worlds(global_batch: int, gpus: int) -> Iterable[int]:
    """8 to 1,024 GPUs, doubling, over which the global batch divides; and the ones at hand."""
    return sorted({world for world in (gpus, *(2**k for k in range(3, 11))) if global_batch % world == 0})
