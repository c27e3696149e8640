"""A table as a page: our numbers beside the paper's, as HTML that loads nothing, as Markdown, and as JSON.

The same results give the same bytes: no time and no path stands in them.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mae_pipe import __version__
from mae_pipe.disk import write_whole
from mae_pipe.machine import processor
from mae_pipe.reporting import pages
from mae_pipe.reproducing import clocks
from mae_pipe.reproducing.figures import NAMES, panels
from mae_pipe.reproducing.findings import Findings, Number, find
from mae_pipe.reproducing.folder import Reproduction
from mae_pipe.reproducing.published import MEASURES, Row
from mae_pipe.reproducing.stems import Study, evaluating, extra_of, measures, pretraining


def write(study: Study, here: Reproduction) -> Path:
    """Write ``TABLE.html``, ``.md`` and ``.json`` of what is there; the path of the first."""
    from markupsafe import Markup

    found, timed = find(study, here), clocks.read(study, here)
    said = _said(found, here) | {"timed": timed}
    drawn = [(name, Markup(ours), Markup(theirs)) for name, ours, theirs in panels(found)]  # noqa: S704 (ours)
    place = here.out / study.table.name
    write_whole(place.with_suffix(".json"), (json.dumps(_values(found, timed), indent=1) + "\n").encode())
    write_whole(place.with_suffix(".md"), pages.plain("reproduce.md.j2", **said).encode())
    return pages.write(
        pages.filled("reproduce.html.j2", title=study.table.title, panels=drawn, **said), place.with_suffix(".html")
    )


def _said(found: Findings, here: Reproduction) -> dict[str, Any]:
    """What all forms of the page say."""
    study = found.study
    return {
        "table": study.table,
        "scale": study.scale,
        "seeds": study.seeds,
        "differs": [*study.scale.differs, *filter(None, [study.table.notes.get(study.scale.name)])],
        "changes": here.changes,
        "measures": [(measure, NAMES[measure]) for measure in study.table.measures],
        "rows": found.rows,
        "stands": any(row.stands for row in found.rows),
        "left_out": [row.label for row in study.table.rows if row not in study.rows],
        "said": said_of,
        "correlations": [
            (NAMES[measure], _correlation(value, count), count)
            for measure, (value, count) in found.correlation.items()
            if sum(row.numbers[measure].paper is not None for row in found.rows) > 1  # else there is no order
        ],
        "missing": found.missing,
        "commands": [(row.label, list(commands(row, study, here))) for row in study.rows if study.table.measures],
        "environment": list(_environment()),
    }


def _correlation(value: float | None, count: int) -> str:
    if value is None:
        return "none yet" if count < 2 else "none, as all are equal"
    return f"{value:+.2f}"


def said_of(number: Number) -> str:
    """``73.5 ± 0.2``: mean and deviation of the seeds; nothing where nothing is to be measured."""
    if not number.ours:
        return ""
    if number.mean is None:
        return "missing"
    return f"{number.mean:.1f}" + ("" if number.deviation is None else f" ± {number.deviation:.1f}")


def commands(row: Row, study: Study, here: Reproduction) -> Iterator[str]:
    """Those that do the same as the first seed of a row."""
    extra = extra_of(here.changes)
    name, changes = pretraining(row, study.scale)
    tokenizer = study.scale.tokenizer
    if row.tokenizer:
        own = (*tokenizer.changes, *extra.get("tokenizer", ()))
        yield _command(["tokenizer", "train", tokenizer.recipe, "--shards", "SHARDS", "--out", "TOK"], own)
        changes = (*changes, "target.options.tokenizer=TOK")
    begin = [*changes, *extra.get("pretrain", ()), "seed=0"]
    if not row.scratch:
        yield _command(["pretrain", name, "--shards", "SHARDS", "--out", "RUN"], begin)
    else:
        yield _command(["recipes", "show", name, "--plain"], begin) + " > RUN.toml"
    for measure in measures(row, study.table, study.scale):
        recipe, own = evaluating(measure, row, study.scale)
        words = [MEASURES[measure], "RUN", "--recipe", recipe]
        if row.scratch:
            words = [words[0], "RUN.toml", "--from-scratch", *words[2:], "--shards", "SHARDS", "--out", "SCRATCH"]
        if measure == "linear" and study.scale.probe.cached:
            words.append("--cached")
        yield _command(words, [*own, *extra.get(MEASURES[measure], ()), "seed=0"])


def _command(words: Sequence[str], changes: Sequence[str]) -> str:
    return shlex.join(["mae-pipe", *words, *(word for change in changes for word in ("--set", change))])


def _values(found: Findings, timed: clocks.Timed | None) -> dict[str, Any]:
    """For machines."""
    study = found.study
    return {
        "table": study.table.name,
        "title": study.table.title,
        "where": study.table.where,
        "scale": study.scale.name,
        "seeds": study.seeds,
        "rows": [
            {
                "label": row.row.label,
                "stands": row.stands,
                "x": row.x,
                **{
                    measure: {
                        "paper": number.paper,
                        "mean": number.mean,
                        "deviation": number.deviation,
                        "seeds": list(number.ours),
                    }
                    for measure, number in row.numbers.items()
                },
            }
            for row in found.rows
        ],
        "rank_correlation": {measure: value for measure, (value, _) in found.correlation.items()},
        "clock": None if timed is None else timed.to_json(),
        "missing": list(found.missing),
        "environment": dict(_environment()),
    }


def _environment() -> Iterator[tuple[str, str]]:
    yield "mae-pipe", __version__
    yield "Python", sys.version.split()[0]
    yield from ((name, version(name)) for name in ("torch", "timm", "deepspeed"))
    yield "processor", f"{processor()}, {os.cpu_count()} cores"
