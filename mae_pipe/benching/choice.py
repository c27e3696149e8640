"""Which format to choose: the smallest on the disk that is fast enough."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mae_pipe.benching.rates import Rates

ALIKE = 1.02  # sizes that differ by less are the same
STEP = 1.1  # a format that is less faster is no step up


@dataclass(frozen=True)
class Figure:
    """What was found of one format.

    Attributes:
        name: for people.
        command: what builds it; "" of the given shards themselves.
        image_bytes: of one image, on average.
        split_bytes: of all images of the split, about.
        decibels: between the stored images and their originals; infinite: none is changed; None: not compared.
        rates: images a second.
    """

    name: str
    command: str
    image_bytes: float
    split_bytes: int
    decibels: float | None
    rates: Rates = field(default_factory=dict)

    def median(self, workers: int) -> float:
        """Images a second."""
        return statistics.median(self.rates[workers])

    @property
    def fastest(self) -> int:
        """The number of workers that makes the most."""
        return max(sorted(self.rates), key=self.median)

    def workers_for(self, wanted: float) -> int | None:
        """The fewest that make so many images a second."""
        return next((count for count in sorted(self.rates) if self.median(count) >= wanted), None)


class Choice(NamedTuple):
    """A format, and with how many workers."""

    figure: Figure
    workers: int

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.figure.median(self.workers)


def smallest(figures: Sequence[Figure], wanted: float) -> Choice | None:
    """The smallest format that makes so many images a second; of equal ones what is there already, or the fastest."""
    able = [Choice(figure, workers) for figure in figures if (workers := figure.workers_for(wanted)) is not None]
    if not able:
        return None
    least = min(choice.figure.split_bytes for choice in able)
    alike = [choice for choice in able if choice.figure.split_bytes <= ALIKE * least]
    return max(alike, key=lambda choice: (not choice.figure.command, choice.figure.median(choice.figure.fastest)))


def fastest(figures: Sequence[Figure]) -> Choice:
    """The format that makes the most images a second."""
    best = max(figures, key=lambda figure: figure.median(figure.fastest))
    return Choice(best, best.fastest)


def steps(figures: Sequence[Figure]) -> list[Choice]:
    """The formats that are right for some rate, from the smallest to the fastest, each at its fastest."""
    found: list[Choice] = []
    wanted = 0.0
    while (choice := smallest(figures, wanted)) is not None:
        found.append(Choice(choice.figure, choice.figure.fastest))
        wanted = STEP * found[-1].rate
    return found
