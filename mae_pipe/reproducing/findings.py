"""What the runs of a table have come to: our numbers, their spread, and whether they are in the paper's order."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mae_pipe.downstream import RESULT
from mae_pipe.reproducing.folder import Reproduction
from mae_pipe.reproducing.published import Row
from mae_pipe.reproducing.ranks import spearman
from mae_pipe.reproducing.stems import Study, at


@dataclass(frozen=True)
class Number:
    """One cell of a table.

    Attributes:
        paper: in percent; None: it has none.
        ours: seed -> percent; None: not measured yet.
    """

    paper: float | None
    ours: tuple[float | None, ...]

    @property
    def values(self) -> list[float]:
        """Those that are there."""
        return [value for value in self.ours if value is not None]

    @property
    def mean(self) -> float | None:
        return sum(self.values) / len(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Of the seeds, as of a sample; None for fewer than two."""
        if len(self.values) < 2 or self.mean is None:
            return None
        return math.sqrt(sum((v - self.mean) ** 2 for v in self.values) / (len(self.values) - 1))


@dataclass(frozen=True)
class Found:
    """A row with its numbers, by measure."""

    row: Row
    stands: str
    x: float | None
    numbers: dict[str, Number]


@dataclass(frozen=True)
class Findings:
    """All of a table.

    Attributes:
        missing: the runs that are not done, in words.
        correlation: measure -> (Spearman's rank correlation of our means with the paper's, rows); None: no order.
    """

    study: Study
    rows: tuple[Found, ...]
    missing: tuple[str, ...]
    correlation: dict[str, tuple[float | None, int]]


def find(study: Study, here: Reproduction) -> Findings:
    """Read the results that are there."""
    rows, missing = [], []
    for row in study.rows:
        numbers: dict[str, Number] = {}
        for measure in study.table.measures:
            cells = [cell for cell in study.cells if cell.row is row and cell.measure == measure]
            values = [_percent(here, cell.stem, cell.evaluation) for cell in cells]
            missing += [
                f"{row.label}, {measure}, seed {cell.seed}"
                for cell, value in zip(cells, values, strict=True)
                if value is None
            ]
            numbers[measure] = Number(row.paper(measure), tuple(values))
        own = at(row, study.scale.name)
        rows.append(Found(row, own.stands, row.x if own.x is None else own.x, numbers))
    correlation: dict[str, tuple[float | None, int]] = {
        measure: _correlated([row.numbers[measure] for row in rows]) for measure in study.table.measures
    }
    return Findings(study, tuple(rows), tuple(missing), correlation)


def _percent(here: Reproduction, stem: str, evaluation: str) -> float | None:
    """Top-1 of an evaluation."""
    try:
        values: dict[str, Any] = json.loads((here.stems / stem / evaluation / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return 100 * float(values[values["main"]])


def _correlated(numbers: Sequence[Number]) -> tuple[float | None, int]:
    both = [(n.mean, n.paper) for n in numbers if n.mean is not None and n.paper is not None]
    return spearman([ours for ours, _ in both], [theirs for _, theirs in both]), len(both)
