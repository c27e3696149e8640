"""Tables and plans as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mae_pipe.reproducing import published
from mae_pipe.reproducing.figures import NAMES
from mae_pipe.reproducing.folder import Reproduction
from mae_pipe.reproducing.forecast import Forecast
from mae_pipe.reproducing.jobs import described
from mae_pipe.reproducing.running import whole
from mae_pipe.reproducing.stems import Stem, Study, Trained, at, pretraining


def rows(table: str, scale: str) -> Iterator[str]:
    """The paper's numbers, and what is run for each row at a scale."""
    chosen, size = published.table(table), published.scale(scale)
    yield f"{chosen.where}: {chosen.title}"
    yield f"the paper: {chosen.claim}"
    yield f"scale {scale}: {size.about}"
    for row in chosen.rows:
        numbers = [f"{NAMES[measure]} {row.paper(measure)}" for measure in chosen.measures if row.paper(measure)]
        if row.clock is not None and row.clock.hours is not None:
            numbers.append(f"{row.clock.hours} hours")
        yield ""
        yield f"{row.label}: {', '.join(numbers) or 'no number'}"
        if row.scales and scale not in row.scales:
            yield "  not at this scale"
        elif chosen.measures:
            stands = at(row, scale).stands
            name, changes = pretraining(row, size)
            what = f"from scratch, the shape of {name}" if row.scratch else name
            said = " ".join(_last(changes))
            yield f"  {f'here {stands}: ' if stands else ''}{what} {said}".rstrip()


def _last(changes: Sequence[str]) -> list[str]:
    """Of each key the change that counts."""
    return list({change.partition("=")[0]: change for change in changes}.values())


def plan(study: Study, here: Reproduction, forecast: Forecast) -> Iterator[str]:
    """What would be run, what is shared, and what it takes."""
    todo: list[Stem | Trained] = [*study.tokenizers.values(), *study.stems.values()]
    numbers = len(study.cells)
    yield (
        f"{study.table.where} at scale {study.scale.name}: {len(study.rows)} rows, {study.seeds} seeds, "
        f"{numbers} numbers of {len(study.stems)} pretrainings or scratch encoders"
    )
    for one in todo:
        state = "done" if whole(one, here) else forecast.words(one)
        yield f"  {described(one, study)}: {state}"
    shared = [stem for stem in study.stems if len(study.rows_of(stem)) > 1]
    yield (
        f"shared: {len(shared)} serve several rows; with other tables in {here.out} all that are equal"
        + (f"; {len(study.tokenizers)} tokenizer serves all seeds" if study.tokenizers else "")
    )
    if study.table.clocked:
        yield "and steps are timed on this machine, a minute or two"
    yield forecast.total([one for one in todo if not whole(one, here)])
