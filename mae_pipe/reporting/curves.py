"""Curves of several runs over epochs, one chart a number; a run keeps its colour in all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mae_pipe.charts import LOOKS, OTHERS, Line, Look, chart, smoothed
from mae_pipe.outcome import Row, repeated
from mae_pipe.reporting.differences import told
from mae_pipe.reporting.gathered import Run, seeds

SIZE = (4.9, 2.5)  # inches: two stand side by side, and one can be read on a phone
MONITORS = {  # what monitors are called; any other by its own name
    "held_out_loss": "Held-out loss",
    "rankme": "Rank of the features (RankMe)",
    "cosine": "Mean cosine of features of different images",
    "alignment": "Alignment (views of an image)",
    "uniformity": "Uniformity (of features)",
    "knn": "k-NN accuracy without training",
}
TASKS = {"pretrain": "pretraining", "probe": "probes", "finetune": "finetunings"}
SHARES = {"knn"}  # monitors that are said in per cent
BESIDES = {
    "epoch",
    "held_out_loss",
    "images",
    "kind",
    "step",
    "time",
}  # in a row, and no monitor with a chart of its own


@dataclass(frozen=True)
class Plot:
    """A chart with its heading; ``note`` says what is to be known about it."""

    heading: str
    svg: str
    note: str = ""


def looks(runs: Sequence[Run]) -> dict[str, Look]:
    """Name -> look. Runs that differ in their seed only share one; those after the tenth are thin and grey."""
    found: dict[str, Look] = {}
    for number, group in enumerate(seeds(runs)):
        found |= dict.fromkeys((run.name for run in group), LOOKS[number] if number < len(LOOKS) else OTHERS)
    return found


def plots(runs: Sequence[Run], look: Mapping[str, Look]) -> list[Plot]:
    """Losses, monitors, learning rate and speed, those for which a run has two points."""
    found = []
    for kind in ("train", "monitor"):
        for what, alike in comparable(runs).items():
            name, heading = ("loss", "Loss") if kind == "train" else ("held_out_loss", MONITORS["held_out_loss"])
            found += _plot(f"{heading}: {what}", alike, look, name, kind, note=_loss_note(alike))
    for name in monitored(runs):
        found += _plot(title_of(name), runs, look, name, "monitor", percent=name in SHARES)
    tasks = {task: [run for run in runs if run.task == task] for task in TASKS}
    for name, heading in (("lr", "Learning rate"), ("images_per_second", "Images per second")):
        for task, alike in tasks.items():
            of = "" if len(alike) == len(runs) else f", {TASKS[task]}"
            note = _speed_note(alike) if name == "images_per_second" else ""
            found += _plot(heading + of, alike, look, name, y_from_zero=True, note=note)
    return found


def scores(runs: Sequence[Run], look: Mapping[str, Look]) -> list[Plot]:
    """Scores of probes and finetunings over their epochs, a chart for each kind of them."""
    kinds: dict[tuple[str, str], list[Line]] = {}
    for run in runs:
        for group in repeated(run.results):
            for result in group.results:
                if len(result.curve) < 2:
                    continue
                epochs = result.recipe.get("schedule", {}).get("epochs") or result.curve[-1][0]
                x = [step * epochs / result.curve[-1][0] for step, _ in result.curve]
                line = Line(run.name, x, [score for _, score in result.curve], dots=True, look=look[run.name])
                kinds.setdefault((result.name, result.metric), []).append(line)
    return [
        Plot(heading, _chart(lines, heading, percent=True))
        for (name, metric), lines in kinds.items()
        for heading in (f"{name[:1].upper()}{name[1:]}: {metric}",)
    ]


def monitored(runs: Sequence[Run]) -> list[str]:
    """The names of the monitors that runs have, held-out loss left out, which stands with the losses."""
    names = {key for run in runs for row in run.rows.get("monitor", []) for key in row} - BESIDES
    return [*(name for name in MONITORS if name in names), *sorted(names - {*MONITORS})]


def title_of(monitor: str) -> str:
    """For a person."""
    return MONITORS.get(monitor, monitor.replace("_", " ").capitalize())


def comparable(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs whose losses are the same quantity, by what it is (method and target, or head); the most runs first."""
    found: dict[str, list[Run]] = {}
    names: dict[str, str] = {}
    for run in runs:
        if run.task == "pretrain":
            target = run.recipe.get("target", {}) if "target" in run.used else {}
            key, name = json.dumps([run.method, target], sort_keys=True), run.method or "pretraining"
            if target.get("loss_on", "hidden") != "hidden":
                name += f", on {target['loss_on']} patches"
        else:
            parts = {part: run.recipe.get(part) for part in ("task", "head", "label_smoothing", "mixing")}
            key, name = json.dumps(parts, sort_keys=True), f"{run.task}, {run.recipe.get('head', {}).get('name')}"
        if key not in names and name in names.values():
            name += f" ({run.name} and alike)"
        found.setdefault(names.setdefault(key, name), []).append(run)
    return dict(sorted(found.items(), key=lambda pair: -len(pair[1])))


def _plot(
    heading: str,
    runs: Sequence[Run],
    look: Mapping[str, Look],
    name: str,
    kind: str = "train",
    *,
    note: str = "",
    **options: Any,
) -> list[Plot]:
    """One chart, or none."""
    lines = []
    for run in reversed(runs):  # the first run is drawn last, over the others
        x, y = run.series(name, kind)
        if len(x) > 1:
            y = smoothed(y, max(1, len(y) // 40)) if kind == "train" and name != "lr" else y
            lines.append(Line(run.name, x, y, dots=kind != "train", look=look[run.name]))
    return [Plot(heading, _chart(lines, heading, **options), note)] if lines else []


def _chart(lines: Sequence[Line], title: str, **options: Any) -> str:
    from markupsafe import Markup

    drawn = chart(lines, title=f"{title}, by epoch", x_label="epoch", size=SIZE, legend=False, **options)
    return Markup(drawn)  # noqa: S704 (matplotlib escapes what it is given)


def _loss_note(runs: Sequence[Run]) -> str:
    """What else moves the losses of runs that are drawn together."""
    flats: list[Row] = [told(run.recipe) for run in runs]
    keys = dict.fromkeys(
        key for values in flats for key in values if key.startswith(("mask.", "method.options", "data.crop"))
    )
    moved = [key for key in keys if len({json.dumps(values.get(key)) for values in flats}) > 1]
    differ = dict.fromkeys(".".join(key.split(".")[:2]) for key in moved)
    said = [*differ, *(["their images"] if len({run.about.get("samples_fingerprint") for run in runs}) > 1 else [])]
    return f"They differ in {', '.join(said)}, which by itself moves the loss." if said else ""


def _speed_note(runs: Sequence[Run]) -> str:
    worlds = {run.about.get("world") for run in runs}
    return "Of all processes of a run, which are not as many in each." if len(worlds) > 1 else ""
