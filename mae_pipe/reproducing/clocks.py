"""How long a step takes, row beside row on this machine, and what it costs at full size (tables 1c and 2).

The networks that are timed are a fourth as wide, as much as a processor can do; arithmetic is counted at full width.
All are stepped in one process by turns, several rounds, so that what else the machine does strikes all alike.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from mae_pipe import recipe as recipes
from mae_pipe.catalog import Catalog
from mae_pipe.disk import write_whole, writing
from mae_pipe.recipe import Pretrain
from mae_pipe.reproducing.folder import Reproduction
from mae_pipe.reproducing.published import Clock, Published, Row
from mae_pipe.reproducing.ranks import spearman
from mae_pipe.reproducing.stems import Study

NARROWER = 4  # times
BATCH = 4  # images a step
ROUNDS = 5


@dataclass(frozen=True)
class Time:
    """One row.

    Attributes:
        seconds: of each round's step at reduced width.
        gflops: of training on one image, at full width, and at the reduced one.
        hours, flops: the paper's; only ratios of ``flops`` mean anything.
        series: rows that are compared with each other.
    """

    label: str
    series: str
    seconds: tuple[float, ...]
    gflops: float
    gflops_reduced: float
    hours: float | None
    flops: float | None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def published(self) -> float:
        """The paper's hours, or else its FLOPs."""
        return self.hours if self.hours is not None else self.flops or math.nan


@dataclass(frozen=True)
class Timed:
    """All rows of a table."""

    rows: tuple[Time, ...]

    @property
    def correlation(self) -> float | None:
        """Of the measured medians with the paper's hours, or with its FLOPs."""
        return spearman([row.median for row in self.rows], [row.published for row in self.rows])

    def speedups(self, row: Time) -> tuple[float, float, float, float]:
        """Over the first row of its series: in time, in FLOPs at reduced and at full width, and the paper's."""
        first = next(one for one in self.rows if one.series == row.series)
        paper = first.published / row.published
        return first.median / row.median, first.gflops_reduced / row.gflops_reduced, first.gflops / row.gflops, paper

    def to_json(self) -> dict[str, Any]:
        return {"rows": [asdict(row) for row in self.rows], "rank_correlation": self.correlation}


def file_of(table: Published) -> str:
    """The name of the file that keeps what was measured."""
    return f"{table.name}-clock.json"


def read(study: Study, here: Reproduction) -> Timed | None:
    """What was measured; None: nothing yet."""
    path = here.out / file_of(study.table)
    if not study.table.clocked or not path.is_file():
        return None
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return Timed(tuple(Time(**{**row, "seconds": tuple(row["seconds"])}) for row in rows))


def measure(study: Study, here: Reproduction, catalog: Catalog, console: Console) -> None:
    """Time the rows of a table once; the figures are kept, and a second call does nothing."""
    if not study.table.clocked or read(study, here) is not None:
        return
    console.print(f"{study.table.where}: timing steps", highlight=False)
    timed = time_rows([row for row in study.rows if row.clock], catalog)
    with writing(here.out):
        write_whole(here.out / file_of(study.table), (json.dumps(timed.to_json(), indent=1) + "\n").encode())


def time_rows(rows: Sequence[Row], catalog: Catalog, narrower: int = NARROWER) -> Timed:
    """Time and count each row's clock."""
    from mae_pipe.costs import costs

    clocks = [row.clock for row in rows if row.clock is not None]
    full = [_load(clock) for clock in clocks]
    reduced = [narrowed(chosen, narrower) for chosen in full]
    steps = [_step(chosen, catalog) for chosen in reduced]
    seconds: list[list[float]] = [[] for _ in rows]
    for round_ in range(ROUNDS + 1):
        for own, step in zip(seconds, steps, strict=True):
            began = time.perf_counter()
            step()
            if round_:  # the first one warms up
                own.append(time.perf_counter() - began)
    return Timed(
        tuple(
            Time(
                label=row.label,
                series=row.series,
                seconds=tuple(own),
                gflops=costs(one, catalog).training / 1e9,
                gflops_reduced=costs(small, catalog).training / 1e9,
                hours=clock.hours,
                flops=clock.flops,
            )
            for row, clock, own, one, small in zip(rows, clocks, seconds, full, reduced, strict=True)
        )
    )


def narrowed(chosen: Pretrain, times: int) -> Pretrain:
    """The recipe with widths and heads divided: heads stay as wide as they are."""
    parts = {"encoder": chosen.encoder, "decoder": chosen.decoder}
    changes = [
        f"{part}.{name}={getattr(shape, name) // times}" for part, shape in parts.items() for name in ("width", "heads")
    ]
    return recipes.changed(chosen, changes)


def _load(clock: Clock) -> Pretrain:
    chosen = recipes.load(clock.recipe, clock.changes, task="pretrain")
    assert isinstance(chosen, Pretrain)
    return chosen


def _step(chosen: Pretrain, catalog: Catalog) -> Callable[[], None]:
    """Forward, backward and AdamW on ``BATCH`` images of noise."""
    import torch

    from mae_pipe.data.batch import Batch
    from mae_pipe.tasks import MaskedAutoencoder

    task = MaskedAutoencoder.from_recipe(chosen, catalog)
    task.train()
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (BATCH, 3, *chosen.data.sides), dtype=torch.uint8, generator=generator)
    numbers = torch.arange(BATCH)
    batch = Batch(pixels, torch.full((BATCH,), -1), numbers, numbers)

    def step() -> None:
        optimizer.zero_grad()
        task(batch).backward()
        optimizer.step()

    return step
