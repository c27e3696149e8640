"""What a run folder says: the numbers of its journal, its downstream results, and one sentence about them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What one downstream run reached."""

    folder: str
    task: str  # "probe" or "finetune"
    pretrained: bool
    top1: float  # in [0, 1]
    top5: float | None
    images: int
    split: str
    labels_per_class: int | None
    curve: tuple[tuple[int, float], ...]  # (step, top-1)

    @property
    def name(self) -> str:
        """For a person."""
        if self.task == "probe":
            return "linear probe, pretrained" if self.pretrained else "linear probe, untrained"
        return "finetuned, pretrained" if self.pretrained else "finetuned, from scratch"

    @property
    def margin(self) -> float:
        """Half of the 95 % interval of ``top1``, from the number of images alone (Wilson 1927)."""
        z, n, p = 1.96, max(self.images, 1), self.top1
        return z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))


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
        rows = [row for row in metrics(folder)[1] if isinstance(row.get("top1"), int | float)]
        task = recipe.get("task")
        if task not in ("probe", "finetune") or not rows:
            continue
        last = rows[-1]
        found.append(
            Result(
                folder=folder.name,
                task=task,
                pretrained=not about.get("from_scratch", False),
                top1=float(last["top1"]),
                top5=float(last["top5"]) if isinstance(last.get("top5"), int | float) else None,
                images=int(last.get("images", 0)),
                split=str(last.get("split", "")),
                labels_per_class=recipe.get("labels_per_class"),
                curve=tuple((int(row["step"]), float(row["top1"])) for row in rows),
            )
        )
    return sorted(found, key=lambda result: (result.task != "probe", result.pretrained, result.folder))


def pays(found: Sequence[Result]) -> bool:
    """Whether every pretrained encoder beat its twin without pretraining by more than chance explains."""
    pairs = _pairs(found)
    return bool(pairs) and all(b.top1 - a.top1 > math.hypot(a.margin, b.margin) for a, b in pairs)


def verdict(found: Sequence[Result], train: Sequence[Row] = ()) -> str:
    """One sentence: did pretraining pay, or what was reached."""
    pairs = _pairs(found)
    if pairs:
        words = {"probe": "a linear probe", "finetune": "finetuning"}
        said = " and ".join(f"{words[a.task]} from {100 * a.top1:.1f} % to {100 * b.top1:.1f} %" for a, b in pairs)
        if pays(found):
            return f"Pretraining pays: it takes {said}."
        if all(b.top1 < a.top1 for a, b in pairs):
            return f"Pretraining did not pay here: it took {said}."
        return f"Pretraining did not pay clearly here: it took {said}."
    if found:
        return f"{_sentence(found[-1].name)}: {100 * found[-1].top1:.1f} % of {found[-1].images:,} images."
    losses = [row["loss"] for row in train if finite(row.get("loss"))]
    if losses:
        return f"The loss fell from {losses[0]:.3f} to {losses[-1]:.3f} in {train[-1]['step']:,} steps."
    return "Nothing was measured yet."


def _pairs(found: Sequence[Result]) -> list[tuple[Result, Result]]:
    """Without and with pretraining, of the same task on as many labels."""
    return [
        (one, other)
        for one in found
        for other in found
        if (one.task, one.labels_per_class) == (other.task, other.labels_per_class)
        and other.pretrained
        and not one.pretrained
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
