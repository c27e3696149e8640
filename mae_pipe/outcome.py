"""What a run folder says: the numbers of its journal, its downstream results, and one sentence about them."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mae_pipe.toml import flat

Row = dict[str, Any]
METRICS = {"top1": "top-1", "miou": "mIoU", "map": "mAP"}  # as people call them
BESIDE = {  # keys and tables of a recipe that what a run learns does not depend on, and the seed
    "about",
    "data.worker_kind",
    "data.workers",
    "eval_every_epochs",
    "faults",
    "logging",
    "monitor",
    "saving",
    "seed",
}


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
    path: Path = Path()  # of its folder
    recipe: Row = field(default_factory=dict, repr=False)
    about: Row = field(default_factory=dict, repr=False)

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


def journal(run: Path) -> dict[str, list[Row]]:
    """The rows of ``metrics.jsonl`` by kind, in the order of steps; a line that a killed run tore is left out.

    A resumed run writes the steps after its checkpoint again: the last word counts.
    """
    kept: dict[str, dict[tuple[int, str], Row]] = {}
    path = run / "metrics.jsonl"
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                step, kind = int(row["step"]), str(row["kind"])
            except (ValueError, KeyError, TypeError):
                continue
            which = {"eval": "split", "warning": "text"}.get(kind, "")  # of which a step may have several
            kept.setdefault(kind, {})[step, str(row.get(which, ""))] = row
    return {kind: [rows[place] for place in sorted(rows)] for kind, rows in kept.items()}


def metrics(run: Path) -> tuple[list[Row], list[Row]]:
    """The train and the eval rows of a run's journal."""
    rows = journal(run)
    return rows.get("train", []), rows.get("eval", [])


def result_of(folder: Path) -> Result | None:
    """What a downstream run's folder says; None: it is none, or was never evaluated."""
    recipe, about = read_object(folder / "recipe.json"), read_object(folder / "run.json")
    main = str(about.get("main", "top1"))
    rows = [row for row in metrics(folder)[1] if finite(row.get(main))]
    task = recipe.get("task")
    if task not in ("probe", "finetune") or not rows:
        return None
    last = rows[-1]
    return Result(
        folder=folder.name,
        task=task,
        pretrained=not about.get("from_scratch", False),
        metric=METRICS.get(main, main),
        score=float(last[main]),
        top5=float(last["top5"]) if finite(last.get("top5")) else None,
        images=int(last.get("images", 0)),
        split=str(last.get("split", "")),
        labels_per_class=recipe.get("labels_per_class"),
        curve=tuple((int(row["step"]), float(row[main])) for row in rows),
        head=str(recipe.get("head", {}).get("name", "linear")),
        blocks=recipe.get("tune_blocks"),
        how=str(about.get("how", "")),
        path=folder,
        recipe=recipe,
        about=about,
    )


def results(run: Path) -> list[Result]:
    """The downstream runs in a run's folder that were evaluated, in ``order``."""
    folders = sorted({run, *(path.parent for path in run.glob("*/run.json"))})
    return order(result for result in map(result_of, folders) if result is not None)


def order(found: Iterable[Result]) -> list[Result]:
    """Probes, then finetunes; untrained ones first."""
    return sorted(found, key=lambda result: (result.task != "probe", result.pretrained, result.folder))


@dataclass(frozen=True)
class Repeated:
    """Results that differ in their seed only, at least one."""

    results: tuple[Result, ...]

    @property
    def first(self) -> Result:
        """One that stands for all."""
        return self.results[0]

    @property
    def score(self) -> float:
        """The mean."""
        return statistics.fmean(result.score for result in self.results)

    @property
    def deviation(self) -> float | None:
        """The standard deviation over seeds (n - 1); None: there is one seed."""
        scores = [result.score for result in self.results]
        return statistics.stdev(scores) if len(scores) > 1 else None

    @property
    def margin(self) -> float:
        """Half of the 95 % interval that the images leave: of any number of seeds, as they are the same images."""
        return margin(self.score, self.first.images)

    @property
    def folders(self) -> str:
        """For a person: ``probe``, or ``probe-s*`` of several."""
        names = [result.folder for result in self.results]
        return names[0] if len(names) == 1 else f"{os.path.commonprefix(names)}*"  # noqa: RUF071 (by letters)


def repeated(found: Iterable[Result]) -> list[Repeated]:
    """Results put together where only their seeds differ, each in the place of its first."""
    groups: dict[str, list[Result]] = {}
    for result in found:
        groups.setdefault(sameness(result.recipe, result.about), []).append(result)
    return [Repeated(tuple(group)) for group in groups.values()]


def sameness(recipe: Row, about: Row) -> str:
    """Equal for runs that differ in nothing but their seed and what they learn nothing from."""
    kept = {key: value for key, value in flat(recipe).items() if not {key, key.partition(".")[0]} & BESIDE}
    kept |= {key: about.get(key) for key in ("how", "features", "from_scratch", "samples_fingerprint")}
    return json.dumps(kept, sort_keys=True, default=str)


def pays(found: Sequence[Result]) -> bool:
    """Whether every pretrained encoder beat its twin without pretraining by more than chance explains."""
    pairs = _pairs(found)
    return bool(pairs) and all(b.score - a.score > math.hypot(a.margin, b.margin) for a, b in pairs)


def verdict(found: Sequence[Result], train: Sequence[Row] = ()) -> str:
    """One sentence: did pretraining pay, or what was reached."""
    pairs = _pairs(found)
    if pairs:
        said = " and ".join(f"{_deed(a.first)} from {100 * a.score:.1f} % to {100 * b.score:.1f} %" for a, b in pairs)
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


def _pairs(found: Sequence[Result]) -> list[tuple[Repeated, Repeated]]:
    """Without and with pretraining, of the same task on as many labels; the means over seeds."""

    def what(group: Repeated) -> tuple[object, ...]:
        one = group.first
        return one.task, one.head, one.how, one.blocks, one.labels_per_class

    groups = repeated(found)
    return [
        (one, other)
        for one in groups
        for other in groups
        if what(one) == what(other) and other.first.pretrained and not one.first.pretrained
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
