"""What measuring a run has found, as tables for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mae_pipe.outcome import METRICS

if TYPE_CHECKING:
    from mae_pipe.evaluating.evaluation import Evaluation, Evaluations

WORST = 5  # classes, and pairs of them


def show(found: Evaluations) -> None:
    """One set: its measures, the worst classes, the pairs that are most confused. Several: a line each, their mean."""
    console = Console(width=None if Console().is_terminal else 120)
    if len(found.sets) > 1 or found.sets[0].name:
        console.print(_sets(found))
        return
    one = found.only
    sides = " x ".join(map(str, one.size))
    said = f"{one.run}: {one.images:,} images of {one.split!r}, {sides} pixels"
    console.print(said, markup=False, highlight=False, soft_wrap=True)
    console.print(_measures(one))
    if one.scores is not None:
        console.print(_worst(one))
        if one.scores.confused(1):
            console.print(_confused(one))


def _table(title: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    return table


def _percent(share: float, margin: float | None = None) -> str:
    return f"{100 * share:.2f} %" + ("" if margin is None else f" ± {100 * margin:.1f}")


def _measures(one: Evaluation) -> Table:
    table = _table("", "measure", "")
    scores, own = one.scores, dict(one.metrics)
    if scores is not None:
        table.add_row("top-1", _percent(scores.top1, scores.margin))
        table.add_row("top-5", _percent(scores.top5))
        table.add_row("mean of the classes", _percent(scores.mean_per_class))
        table.add_row("expected calibration error", _percent(scores.calibration_error))
        table.add_row("negative log likelihood", f"{scores.nll:.4f}")
        table.add_row("Brier score", f"{scores.brier:.4f}")
        own.pop("top1", None)
        own.pop("top5", None)
    for name, value in own.items():
        table.add_row(Text(METRICS.get(name, name)), f"{value:.4f}")
    if one.allowed is not None:
        table.caption = f"answers restricted to the {len(one.allowed):,} classes that the images have"
    return table


def _worst(one: Evaluation) -> Table:
    assert one.scores is not None
    table = _table("worst classes", "class", "images", "right")
    for score in sorted(one.scores.per_class, key=lambda score: score.accuracy)[:WORST]:
        table.add_row(Text(score.name), f"{score.images:,}", _percent(score.accuracy, score.margin))
    return table


def _confused(one: Evaluation) -> Table:
    assert one.scores is not None
    table = _table("most confused", "class", "taken for", "images")
    for truth, said, images in one.scores.confused(WORST):
        table.add_row(Text(one.classes[truth]), Text(one.classes[said]), f"{images:,}")
    return table


def _sets(found: Evaluations) -> Table:
    main = found.sets[0].main
    table = _table(found.sets[0].run, "set", "images", METRICS.get(main, main), "error")
    for one in found.sets:
        margin = None if one.scores is None else one.scores.margin
        table.add_row(Text(one.name), f"{one.images:,}", _percent(one.score, margin), _percent(1 - one.score))
    table.add_section()
    if len(found.groups) > 1:
        for name, error in found.groups.items():
            table.add_row(Text(f"mean of {name}"), "", _percent(1 - error), _percent(error))
        table.add_section()
    table.add_row("mean", "", _percent(1 - found.mean_error), _percent(found.mean_error), style="bold")
    return table
