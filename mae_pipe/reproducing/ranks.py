"""Whether two lists of numbers are in the same order."""

from __future__ import annotations

import math
from collections.abc import Sequence


def spearman(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Spearman's rank correlation (1904): Pearson's of the ranks; equal numbers share the mean of their ranks.

    None where there are fewer than two numbers, or all of a list are equal: then there is no order.
    """
    a, b = ranks(ours), ranks(theirs)
    mean = (len(a) + 1) / 2
    spread = math.sqrt(sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b))
    if not spread:
        return None
    return sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True)) / spread


def ranks(values: Sequence[float]) -> list[float]:
    """1 for the smallest."""
    return [
        sum(other < value for other in values) + (1 + sum(other == value for other in values)) / 2 for value in values
    ]
