"""The probes and finetunings of several runs under common headings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mae_pipe.outcome import Repeated, Result, repeated, sameness
from mae_pipe.reporting.gathered import Run
from mae_pipe.reporting.tables import Column


class Kind(NamedTuple):
    """What scores have in common that are compared."""

    name: str  # for a person: the task, the head, whether pretrained
    labels: int | None  # a class, to train on; None: all
    data: str  # the fingerprint of the samples
    measured: str  # for a person: on how many images of which split
    recipe: str = ""  # where a run has two of which all of the above is the same


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
    """Put what was done alike on the same data under one heading; where a run has two such, what has one recipe."""
    found = {run.name: repeated(run.results) for run in runs}
    twice = set()
    for groups in found.values():
        kinds = [_kind(group.first) for group in groups]
        twice |= {kind for kind in kinds if kinds.count(kind) > 1}

    def kind_of(group: Repeated) -> Kind:
        one, kind = group.first, _kind(group.first)
        return kind._replace(recipe=sameness(one.recipe, one.about)) if kind in twice else kind

    by_run = {name: {kind_of(group): group for group in groups} for name, groups in found.items()}
    firsts: dict[Kind, Repeated] = {}
    folders: dict[Kind, dict[str, None]] = {}
    for row in by_run.values():
        for kind, group in row.items():
            firsts.setdefault(kind, group)
            folders.setdefault(kind, {})[group.folders] = None
    kinds = sorted(
        firsts, key=lambda kind: (firsts[kind].first.task != "probe", firsts[kind].first.pretrained, str(kind))
    )
    several = len({(kind.data, kind.measured) for kind in kinds}) > 1
    return Scores(
        by_run,
        {kind: _column(at, kind, list(folders[kind]), several=several) for at, kind in enumerate(kinds, start=1)},
        max(kinds, key=lambda kind: (sum(kind in row for row in by_run.values()), kinds.index(kind)), default=None),
    )


def _kind(result: Result) -> Kind:
    measured = f"on {result.images:,} images of {result.split}"
    return Kind(result.name, result.labels_per_class, str(result.about.get("samples_fingerprint")), measured)


def _column(number: int, kind: Kind, folders: Sequence[str], *, several: bool) -> Column:
    """``several``: not all were measured on the same images, so that it is said on which."""
    told = [f"{kind.labels} labels a class"] if kind.labels else []
    told += [kind.measured] if several else []
    told += [*folders[:2], *(["..."] if len(folders) > 2 else [])] if kind.recipe else []
    return Column(f"score-{number}", kind.name[:1].upper() + kind.name[1:], beside=", ".join(told))
