"""The page of several runs: one table of all, their curves in the same charts, and in what their recipes differ."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from mae_pipe.charts import Look
from mae_pipe.outcome import Repeated, repeated
from mae_pipe.reporting import curves, films, tables
from mae_pipe.reporting.differences import of_environments, of_recipes
from mae_pipe.reporting.gathered import Run, seeds
from mae_pipe.reporting.pages import filled
from mae_pipe.reporting.tables import Cell, Column, Table

KEY = tuple[str, int | None, str]  # what a column of scores holds: the task in words, labels a class, folders


def render(runs: Sequence[Run]) -> str:
    """The page as HTML."""
    runs = _in_order(runs)
    look = curves.looks(runs)
    rows = [(Cell(run.name, look=look[run.name]), group) for run in runs for group in repeated(run.results)]
    recipes = of_recipes(runs)
    return filled(
        "comparison.html.j2",
        title=f"{len(runs)} runs compared",
        runs=runs,
        look=look,
        others=sum(shown.colour is None for shown in look.values()),
        warnings=[(run.name, row) for run in runs for row in run.rows.get("warning", [])],
        summary=_summary(runs, look),
        means=_means(runs, look),
        plots=curves.plots(runs, look),
        results=tables.of_results(rows) if rows else None,
        scores=curves.scores(runs, look),
        last=films.side_by_side(runs),
        films=[(run.name, film) for run in runs if (film := films.film(run.folder))],
        recipes=recipes,
        environment=of_environments(runs),
    )


def scored(runs: Sequence[Run]) -> dict[str, dict[KEY, Repeated]]:
    """Run -> its probes and finetunings by what they are; folders tell those apart of which one run has two."""
    found = {run.name: repeated(run.results) for run in runs}
    plain = {name: [(g.first.name, g.first.labels_per_class) for g in groups] for name, groups in found.items()}
    twice = {what for whats in plain.values() for what in whats if whats.count(what) > 1}
    return {
        name: {
            (*what, group.folders if what in twice else ""): group
            for what, group in zip(plain[name], groups, strict=True)
        }
        for name, groups in found.items()
    }


def _in_order(runs: Sequence[Run]) -> list[Run]:
    """The best first, by the score that most runs have; without any, by the last loss of the same method."""
    by_run = scored(runs)
    column = _main(by_run)
    if column is None:
        return sorted(runs, key=lambda run: (run.method, run.last("loss") is None, run.last("loss") or 0.0))
    return sorted(runs, key=lambda run: (column not in by_run[run.name], -_score(by_run[run.name].get(column))))


def _main(by_run: Mapping[str, Mapping[KEY, Repeated]]) -> KEY | None:
    """What most runs were measured by; of several the last, which is a finetuning of a pretrained encoder."""
    columns = _columns(by_run)
    return max(columns, key=lambda key: (sum(key in row for row in by_run.values()), columns.index(key)), default=None)


def _columns(by_run: Mapping[str, Mapping[KEY, Repeated]]) -> list[KEY]:
    """In the order of tasks."""
    firsts: dict[KEY, Repeated] = {}
    for row in by_run.values():
        firsts |= {key: group for key, group in row.items() if key not in firsts}
    return sorted(
        firsts, key=lambda key: (firsts[key].first.task != "probe", firsts[key].first.pretrained, *map(str, key))
    )


def _summary(runs: Sequence[Run], look: Mapping[str, Look]) -> Table:
    """A row a run."""
    by_run = scored(runs)
    keys, main = _columns(by_run), _main(by_run)
    columns = [
        Column("name", "run", number=False),
        Column("method", "method", number=False),
        Column("encoder", "encoder", number=False),
        Column("epochs", "epochs"),
        Column("loss", "last loss"),
        Column("held-out", "held-out loss"),
        Column("speed", "images/s", beside="median"),
        *(_score_column(number, key) for number, key in enumerate(keys)),
    ]
    rows = []
    for run in runs:
        text, size = run.encoder
        done = run.task == "pretrain"
        rows.append(
            [
                Cell(run.name, look=look[run.name], strong=True),
                Cell(run.method if done else f"{run.method}, {run.task}".lstrip(", ")),
                Cell(text, size),
                _number(run.last("epoch"), "{:,.4g}"),
                _number(run.last("loss"), "{:.4f}"),
                _number(run.last("held_out_loss", "monitor"), "{:.4f}"),
                _number(run.median("images_per_second"), "{:,.0f}"),
                *(_score_cell(by_run[run.name].get(key)) for key in keys),
            ]
        )
    if main is None:
        return tables.trimmed(Table("runs", tuple(columns), tuple(map(tuple, rows))))
    return tables.ordered("runs", columns, rows, f"score-{keys.index(main) + 1}", descending=True)


def _means(runs: Sequence[Run], look: Mapping[str, Look]) -> Table | None:
    """A row for runs that differ in their seed only: means and standard deviations; None: there are no such runs."""
    by_run = scored(runs)
    keys = _columns(by_run)
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
        for key in keys:
            each = [by_run[run.name].get(key) for run in group]
            cells.append(_mean([None if one is None else 100 * one.score for one in each], "{:.1f}", " %"))
        rows.append(cells)
    columns = (
        Column("name", "runs that differ in their seed only", number=False),
        Column("seeds", "runs"),
        Column("loss", "last loss"),
        Column("held-out", "held-out loss"),
        Column("speed", "images/s"),
        *(_score_column(number, key) for number, key in enumerate(keys)),
    )
    return tables.trimmed(Table("means", columns, tuple(map(tuple, rows)))) if rows else None


def _score_column(number: int, key: KEY) -> Column:
    name, labels, folders = key
    beside = ", ".join(filter(None, (f"{labels} labels a class" if labels else "", folders)))
    return Column(f"score-{number + 1}", name[:1].upper() + name[1:], beside=beside)


def _score_cell(group: Repeated | None) -> Cell:
    if group is None:
        return Cell()
    return Cell(f"{100 * group.score:.1f} %", group.score, beside=tables.spread(group) if group.deviation else "")


def _score(group: Repeated | None) -> float:
    return 0.0 if group is None else group.score


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
