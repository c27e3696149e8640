"""What measuring a run has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mae_pipe.evaluating.scores import Scores


@dataclass(frozen=True)
class Evaluation:
    """A run on one set of images.

    Attributes:
        name: of the set, where there are several; its path below the folder of them.
        source: where the images are.
        size: H and W that the model was shown, pixels.
        centre_share: side of what was shown, in the resized image's short side.
        step: of the run's model.
        main: the head's main metric.
        classes: the run's, in the order of ``scores.confusion``.
        metrics: the head's own, over all images.
        scores: where images have one class each.
        allowed: the classes that an answer could be; None: all.
    """

    name: str
    run: str
    source: str
    split: str
    images: int
    size: list[int]
    centre_share: float
    step: int
    main: str
    classes: list[str]
    metrics: dict[str, float]
    scores: Scores | None = None
    allowed: list[int] | None = None

    @property
    def score(self) -> float:
        """The head's main metric, in [0, 1]."""
        return self.metrics[self.main]

    def to_json(self) -> dict[str, Any]:
        """For json.dumps."""
        return {**vars(self), "scores": None if self.scores is None else self.scores.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Evaluation:
        """The inverse of ``to_json``."""
        found = values["scores"]
        return cls(**{**values, "scores": None if found is None else Scores.from_json(found)})


@dataclass(frozen=True)
class Evaluations:
    """A run on one or more sets of images, in the order of their names."""

    sets: list[Evaluation]

    @property
    def only(self) -> Evaluation:
        """Where there is one set."""
        (one,) = self.sets
        return one

    def to_json(self) -> dict[str, Any]:
        """For json.dumps."""
        sets = [one.to_json() for one in self.sets]
        return {"mean_error": self.mean_error, "groups": self.groups, "sets": sets}

    @property
    def mean_error(self) -> float:
        """The mean over sets of 1 - score: over corruptions and severities of ImageNet-C, not normalised."""
        return sum(1 - one.score for one in self.sets) / len(self.sets)

    @property
    def groups(self) -> dict[str, float]:
        """The mean error of the sets of each folder above, such as a corruption's severities; empty without such."""
        parts: dict[str, list[float]] = {}
        for one in self.sets:
            parts.setdefault(one.name.rpartition("/")[0], []).append(1 - one.score)
        return {name: sum(errors) / len(errors) for name, errors in parts.items() if name}
