"""The page of several runs: one table of all, their curves in the same charts, and in what their recipes differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from mae_pipe.charts import Look
from mae_pipe.outcome import Repeated, margin, repeated
from mae_pipe.reporting import curves, films, tables
from mae_pipe.reporting.differences import of_environments, of_recipes
from mae_pipe.reporting.gathered import Run, seeds
from mae_pipe.reporting.pages import filled
from mae_pipe.reporting.scores import Scores, scores_of
from mae_pipe.reporting.tables import Cell, Column, Table


def render(runs: Sequence[Run]) -> str:
    """The page as HTML."""
    runs = _in_order(runs)
    look, scores = curves.looks(runs), scores_of(runs)
    rows = [(Cell(run.name, look=look[run.name]), group) for run in runs for group in repeated(run.results)]
    recipes = of_recipes(runs)
    return filled(
        "comparison.html.j2",
        title=f"{len(runs)} runs compared",
        verdict=_first(runs, scores),
        runs=runs,
        look=look,
        others=sum(shown.colour is None for shown in look.values()),
        warnings=[(run.name, row) for run in runs for row in run.rows.get("warning", [])],
        summary=_summary(runs, look, scores),
        means=_means(runs, look, scores),
        plots=curves.plots(runs, look),
        results=tables.of_results(rows) if rows else None,
        scores=curves.scores(runs, look),
        last=films.side_by_side(runs),
        films=[(run.name, film) for run in runs if (film := films.film(run.folder))],
        recipes=recipes,
        environment=of_environments(runs),
    )


def _in_order(runs: Sequence[Run]) -> list[Run]:
    """The best first, by the score that most runs have; without any, by the last loss of the same method."""
    scores = scores_of(runs)
    if scores.main is None:
        return sorted(runs, key=lambda run: (run.method, run.last("loss") is None, run.last("loss") or 0.0))
    reached = {run.name: scores.of_main(run) for run in runs}
    return sorted(runs, key=lambda run: -1.0 if (best := reached[run.name]) is None else -1.0 - best.score)


def _first(runs: Sequence[Run], scores: Scores) -> str:
    """Who leads by the mean over seeds, and whether clearly; or else who there is."""
    ranked = []
    for group in seeds(runs):
        reached = [found for found in map(scores.of_main, group) if found is not None]
        if reached:
            ranked.append((statistics.fmean(found.score for found in reached), group, reached[0]))
    ranked.sort(key=lambda one: -one[0])
    if not ranked:
        return ", ".join(run.name for run in runs)
    score, group, one = ranked[0]
    names = ", ".join(run.name for run in group)
    mean = "" if len(group) == 1 else f", the mean of {len(group)}"
    said = f"First by {one.first.name}: {names}, {100 * score:.1f} % {one.first.metric}{mean}."
    if len(ranked) == 1 or not (one.first.is_share and one.first.images):
        return said
    second, others, other = ranked[1]
    apart = math.hypot(margin(score, one.first.images), margin(second, other.first.images))
    near = (
        f" {', '.join(run.name for run in others)} ({100 * second:.1f} %) is nearer than the evaluated images can tell."
    )
    return said + (near if score - second <= apart else "")


def _summary(runs: Sequence[Run], look: Mapping[str, Look], scores: Scores) -> Table:
    """A row a run."""
    kinds = list(scores.columns)
    main = [kind for kind in kinds if kind == scores.main]  # stands first, so that a phone shows it too
    kinds = [kind for kind in kinds if kind != scores.main]
    columns = [
        Column("name", "run", number=False),
        *(scores.columns[kind] for kind in main),
        Column("method", "method", number=False),
        Column("encoder", "encoder", number=False),
        Column("epochs", "epochs"),
        Column("loss", "last loss"),
        Column("held-out", "held-out loss"),
        Column("speed", "images/s", beside="median"),
        *(scores.columns[kind] for kind in kinds),
    ]
    rows = []
    for run in runs:
        text, size = run.encoder
        done = run.task == "pretrain"
        rows.append(
            [
                Cell(run.name, look=look[run.name], strong=True),
                *(_score_cell(scores.by_run[run.name].get(kind)) for kind in main),
                Cell(run.method if done else f"{run.method}, {run.task}".lstrip(", ")),
                Cell(text, size),
                _number(run.last("epoch"), "{:,.4g}"),
                _number(run.last("loss"), "{:.4f}"),
                _number(run.last("held_out_loss", "monitor"), "{:.4f}"),
                _number(run.median("images_per_second"), "{:,.0f}"),
                *(_score_cell(scores.by_run[run.name].get(kind)) for kind in kinds),
            ]
        )
    order = "" if scores.main is None else scores.columns[scores.main].key
    return tables.trimmed(Table("runs", tuple(columns), tuple(map(tuple, rows)), order, descending=True))


def _means(runs: Sequence[Run], look: Mapping[str, Look], scores: Scores) -> Table | None:
    """A row for runs that differ in their seed only: means and standard deviations; None: there are no such runs."""
    rows = []
    for group in seeds(runs):
        if len(group) < 2:
            continue
        cells = [
            Cell(", ".join(run.name for run in group), look=look[group[0].name], strong=True),
            Cell(f"{len(group)}", len(group)),
            _mean([run.last("loss") for run in group], "{:.4f}"),
            _mean([run.last("held_out_loss", "monitor") for run in group], "{:.4f}"),
            _mean([run.median("images_per_second") for run in group], "{:,.0f}"),
        ]
        for kind in scores.columns:
            each = [scores.by_run[run.name].get(kind) for run in group]
            cells.append(_mean([None if one is None else 100 * one.score for one in each], "{:.1f}", " %"))
        rows.append(cells)
    columns = (
        Column("name", "runs that differ in their seed only", number=False),
        Column("seeds", "runs"),
        Column("loss", "last loss"),
        Column("held-out", "held-out loss"),
        Column("speed", "images/s"),
        *scores.columns.values(),
    )
    return tables.trimmed(Table("means", columns, tuple(map(tuple, rows)))) if rows else None


def _score_cell(group: Repeated | None) -> Cell:
    if group is None:
        return Cell()
    return Cell(f"{100 * group.score:.1f} %", group.score, beside=tables.spread(group) if group.deviation else "")


def _number(value: float | None, form: str) -> Cell:
    return Cell() if value is None else Cell(form.format(value), value)


def _mean(values: Sequence[float | None], form: str, unit: str = "") -> Cell:
    """Mean and standard deviation (n - 1) of those that are there."""
    known = [value for value in values if value is not None]
    if not known:
        return Cell()
    mean = statistics.fmean(known)
    beside = f"± {form.format(statistics.stdev(known))}" if len(known) > 1 else ""
    return Cell(
        form.format(mean) + unit, mean, beside=beside + (f" of {len(known)}" if len(known) < len(values) else "")
    )
