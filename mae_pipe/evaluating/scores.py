"""Rows of single images -> accuracies, confusion and calibration, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mae_pipe.evaluating.judged import Judged
from mae_pipe.outcome import margin

BINS = 15  # of equal width (Guo et al. 2017)


@dataclass(frozen=True)
class ClassScore:
    """Of the images of one class."""

    name: str
    images: int
    accuracy: float
    margin: float  # half of the 95 % interval (Wilson 1927)


@dataclass(frozen=True)
class Bin:
    """Images whose probability is above ``low`` and at most ``high``; the means are None where there are none."""

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Scores:
    """Of one class an image.

    Attributes:
        top1, top5, mean_per_class: in [0, 1]; the last is the mean accuracy of the classes that have images.
        margin: half of the 95 % interval of ``top1`` (Wilson 1927).
        nll: negative log likelihood of the label, nats.
        brier: sum over classes of (probability - truth) squared, in [0, 2] (Brier 1950).
        calibration_error: expected calibration error over ``bins`` (Guo et al. 2017).
        confusion: [C, C] int64: images of the class of the row that were taken for the class of the column.
        per_class: of every class that has images.
    """

    images: int
    top1: float
    top5: float
    margin: float
    mean_per_class: float
    nll: float
    brier: float
    calibration_error: float
    bins: list[Bin]
    per_class: list[ClassScore]
    confusion: NDArray[np.int64]

    def to_json(self) -> dict[str, Any]:
        """For json.dumps; the confusion as lists of counts."""
        values = {name: value for name, value in vars(self).items() if name not in ("bins", "per_class", "confusion")}
        parts = {"bins": [vars(one) for one in self.bins], "per_class": [vars(one) for one in self.per_class]}
        return {**values, **parts, "confusion": self.confusion.tolist()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Scores:
        """The inverse of ``to_json``."""
        bins, per_class = [Bin(**one) for one in values["bins"]], [ClassScore(**one) for one in values["per_class"]]
        confusion = np.array(values["confusion"], np.int64)
        return cls(**{**values, "bins": bins, "per_class": per_class, "confusion": confusion})

    def confused(self, most: int) -> list[tuple[int, int, int]]:
        """(class, taken for, images) of the pairs that are confused most."""
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = [(int(n) // len(wrong), int(n) % len(wrong)) for n in order]
        return [(truth, said, int(wrong[truth, said])) for truth, said in pairs if wrong[truth, said]]


def scores(rows: Judged, classes: Sequence[str]) -> Scores:
    """What the rows of all images come to; ``classes`` are the run's names."""
    count, size = len(rows.label), len(classes)
    hits = rows.predicted == rows.label
    confusion = np.bincount(rows.label * size + rows.predicted, minlength=size * size).reshape(size, size)
    per_class = []
    for number in np.flatnonzero(confusion.sum(axis=1)).tolist():
        images = int(confusion[number].sum())
        accuracy = int(confusion[number, number]) / images
        per_class.append(ClassScore(classes[number], images, accuracy, margin(accuracy, images)))
    top1 = int(hits.sum()) / count
    bins = reliability(rows.probability, hits)
    gaps = [
        b.images * abs(b.accuracy - b.confidence) for b in bins if b.accuracy is not None and b.confidence is not None
    ]
    return Scores(
        images=count,
        top1=top1,
        top5=int(rows.top5.sum()) / count,
        margin=margin(top1, count),
        mean_per_class=float(np.mean([one.accuracy for one in per_class])),
        nll=float(rows.nll.mean()),
        brier=float(rows.brier.mean()),
        calibration_error=float(sum(gaps)) / count,
        bins=bins,
        per_class=per_class,
        confusion=confusion.astype(np.int64),
    )


def reliability(probability: NDArray[np.float64], hits: NDArray[np.bool_], bins: int = BINS) -> list[Bin]:
    """How often what is said with a probability is right: [n] and [n] -> bins of equal width."""
    edges = np.linspace(0, 1, bins + 1)
    place = np.searchsorted(edges[1:], probability, side="left").clip(max=bins - 1)  # (low, high]; a rounding above 1
    found = []
    for number in range(bins):
        inside = place == number
        images = int(inside.sum())
        means = [float(values[inside].mean()) if images else None for values in (probability, hits)]
        found.append(Bin(float(edges[number]), float(edges[number + 1]), images, *means))
    return found
