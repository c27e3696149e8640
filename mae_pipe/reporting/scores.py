"""The probes and finetunings of several runs under common headings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mae_pipe.outcome import Repeated, Result, repeated, sameness
from mae_pipe.reporting.gathered import Run
from mae_pipe.reporting.tables import Column

Kind = tuple[
    str, int | None, str
]  # in words, labels a class, and the recipe where a run has two that are called the same


@dataclass(frozen=True)
class Scores:
    """Attributes:
    by_run: name of a run -> what it reached, by kind.
    columns: kind -> its heading; probes first.
    main: the kind that most runs have, of several the last: a finetuning of a pretrained encoder; None: there is none.
    """

    by_run: dict[str, dict[Kind, Repeated]]
    columns: dict[Kind, Column]
    main: Kind | None

    def of_main(self, run: Run) -> Repeated | None:
        """What a run reached in the main kind."""
        return None if self.main is None else self.by_run[run.name].get(self.main)


def scores_of(runs: Sequence[Run]) -> Scores:
    """Put what was done alike under one heading; where a run has two of a name, only what has the same recipe."""
    found = {run.name: repeated(run.results) for run in runs}
    twice = set()
    for groups in found.values():
        names = [_named(group.first) for group in groups]
        twice |= {name for name in names if names.count(name) > 1}

    def kind(group: Repeated) -> Kind:
        one = group.first
        return *_named(one), sameness(one.recipe, one.about) if _named(one) in twice else ""

    by_run = {name: {kind(group): group for group in groups} for name, groups in found.items()}
    firsts: dict[Kind, Repeated] = {}
    folders: dict[Kind, dict[str, None]] = {}
    for row in by_run.values():
        for key, group in row.items():
            firsts.setdefault(key, group)
            folders.setdefault(key, {})[group.folders] = None
    kinds = sorted(
        firsts, key=lambda key: (firsts[key].first.task != "probe", firsts[key].first.pretrained, *map(str, key))
    )
    return Scores(
        by_run,
        {key: _column(number, key, list(folders[key])) for number, key in enumerate(kinds)},
        max(kinds, key=lambda key: (sum(key in row for row in by_run.values()), kinds.index(key)), default=None),
    )


def _named(result: Result) -> tuple[str, int | None]:
    return result.name, result.labels_per_class


def _column(number: int, kind: Kind, folders: Sequence[str]) -> Column:
    name, labels, recipe = kind
    told = [f"{labels} labels a class"] if labels else []
    told += [*folders[:2], *(["..."] if len(folders) > 2 else [])] if recipe else []
    return Column(f"score-{number + 1}", name[:1].upper() + name[1:], beside=", ".join(told))
