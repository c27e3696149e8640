"""What a run folder says: the numbers of its journal, its downstream results, and one sentence about them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
METRICS = {"top1": "top-1", "miou": "mIoU", "map": "mAP"}  # as people call them


def margin(share: float, images: int) -> float:
    """Half of the 95 % interval of a ``share`` of so many images (Wilson 1927)."""
    z, n, p = 1.96, max(images, 1), share
    return z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))


@dataclass(frozen=True)
class Result:
    """What one downstream run reached."""

    folder: str
    task: str  # "probe" or "finetune"
    pretrained: bool
    metric: str  # the head's main one, for a person: "top-1", "mIoU", "mAP"
    score: float  # in [0, 1]
    top5: float | None
    images: int
    split: str
    labels_per_class: int | None
    curve: tuple[tuple[int, float], ...]  # (step, score)
    head: str = "linear"
    blocks: float | None = None  # of a partial finetuning: the last that train
    how: str = ""  # on features: "cached", "sweep", "logistic"

    @property
    def name(self) -> str:
        """For a person."""
        if self.task == "probe":
            how = {"": "", "cached": ", on features", "sweep": ", best rate"}.get(self.how, f", {self.how}")
            return f"{self.head} probe{how}, {'pretrained' if self.pretrained else 'untrained'}"
        what = "finetuned" if self.head == "linear" else f"finetuned, {self.head}"
        what += "" if self.blocks is None else f", last {self.blocks:g} block{'s' if self.blocks > 1 else ''}"
        return f"{what}, {'pretrained' if self.pretrained else 'from scratch'}"

    @property
    def margin(self) -> float:
        """Half of the 95 % interval of ``score``, from the number of images alone.

        For a score that is no share of images it is only what such a share would have.
        """
        return margin(self.score, self.images)

    @property
    def is_share(self) -> bool:
        """Whether ``score`` is a share of images, so that ``margin`` can be said beside it."""
        return self.metric not in ("mIoU", "mAP")


def metrics(run: Path) -> tuple[list[Row], list[Row]]:
    """The train and the eval rows of ``metrics.jsonl``; a line that a killed run tore is left out."""
    train: dict[int, Row] = {}
    evals: dict[tuple[int, str], Row] = {}
    path = run / "metrics.jsonl"
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                step = int(row["step"])
            except (ValueError, KeyError, TypeError):
                continue
            # A resumed run writes the steps after its checkpoint again: the last word counts.
            if row.get("kind") == "train":
                train[step] = row
            elif row.get("kind") == "eval":
                evals[step, str(row.get("split", ""))] = row
    return [train[step] for step in sorted(train)], [evals[place] for place in sorted(evals)]


def results(run: Path) -> list[Result]:
    """The downstream runs in a run's folder that were evaluated: probes, then finetunes; untrained ones first."""
    found = []
    for folder in sorted({run, *(path.parent for path in run.glob("*/run.json"))}):
        recipe, about = read_object(folder / "recipe.json"), read_object(folder / "run.json")
        main = str(about.get("main", "top1"))
        rows = [row for row in metrics(folder)[1] if isinstance(row.get(main), int | float)]
        task = recipe.get("task")
        if task not in ("probe", "finetune") or not rows:
            continue
        last = rows[-1]
        found.append(
            Result(
                folder=folder.name,
                task=task,
                pretrained=not about.get("from_scratch", False),
                metric=METRICS.get(main, main),
                score=float(last[main]),
                top5=float(last["top5"]) if isinstance(last.get("top5"), int | float) else None,
                images=int(last.get("images", 0)),
                split=str(last.get("split", "")),
                labels_per_class=recipe.get("labels_per_class"),
                curve=tuple((int(row["step"]), float(row[main])) for row in rows),
                head=str(recipe.get("head", {}).get("name", "linear")),
                blocks=recipe.get("tune_blocks"),
                how=str(about.get("how", "")),
            )
        )
    return sorted(found, key=lambda result: (result.task != "probe", result.pretrained, result.folder))


def pays(found: Sequence[Result]) -> bool:
    """Whether every pretrained encoder beat its twin without pretraining by more than chance explains."""
    pairs = _pairs(found)
    return bool(pairs) and all(b.score - a.score > math.hypot(a.margin, b.margin) for a, b in pairs)


def verdict(found: Sequence[Result], train: Sequence[Row] = ()) -> str:
    """One sentence: did pretraining pay, or what was reached."""
    pairs = _pairs(found)
    if pairs:
        said = " and ".join(f"{_deed(a)} from {100 * a.score:.1f} % to {100 * b.score:.1f} %" for a, b in pairs)
        if pays(found):
            return f"Pretraining pays: it takes {said}."
        if all(b.score < a.score for a, b in pairs):
            return f"Pretraining did not pay here: it took {said}."
        return f"Pretraining did not pay clearly here: it took {said}."
    if found:
        last = found[-1]
        return f"{_sentence(last.name)}: {100 * last.score:.1f} % {last.metric} on {last.images:,} images."
    losses = [row["loss"] for row in train if finite(row.get("loss"))]
    if losses:
        return f"The loss fell from {losses[0]:.3f} to {losses[-1]:.3f} in {train[-1]['step']:,} steps."
    return "Nothing was measured yet."


def _pairs(found: Sequence[Result]) -> list[tuple[Result, Result]]:
    """Without and with pretraining, of the same task on as many labels."""

    def what(result: Result) -> tuple[object, ...]:
        return result.task, result.head, result.how, result.blocks, result.labels_per_class

    return [
        (one, other)
        for one in found
        for other in found
        if what(one) == what(other) and other.pretrained and not one.pretrained
    ]


def read_object(path: Path) -> Row:
    """A JSON object, or an empty one where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def finite(value: Any) -> bool:
    """Whether it is a number that can be drawn or said."""
    return isinstance(value, int | float) and math.isfinite(value)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _deed(result: Result) -> str:
    """What was done with the encoder, in a sentence."""
    return "finetuning" if result.task == "finetune" else f"a {result.head} probe"
