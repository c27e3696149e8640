"""A table of the paper on eight pictures, in networks of four numbers a head: two pretrainings, four measurements."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from mae_pipe.reproducing import clocks, published
from mae_pipe.reproducing.clocks import Time, Timed
from mae_pipe.reproducing.verb import Asked, run
from tests.small_runs import SHORT, narrow

TABLE = "1c"
CHANGES = tuple(
    f"{part}.{change}"
    for part in ("pretrain", "finetune", "probe")
    for change in [
        *SHORT,
        *(narrow("digits") if part == "pretrain" else ()),
        *(("labels_per_class=4",) if part == "finetune" else ()),
    ]
)


def clocked(folder: Path) -> None:
    """As if steps had been timed in ``folder`` already, which takes a minute."""
    rows = [row for row in published.table(TABLE).rows if row.clock]
    times = [
        Time(row.label, row.series, (seconds, 2 * seconds), 10 * seconds, seconds, None, row.clock.flops)
        for row, seconds in zip(rows, (0.3, 0.1), strict=True)
        if row.clock
    ]
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(Timed(tuple(times)).to_json())
    (folder / clocks.file_of(published.table(TABLE))).write_text(content, encoding="utf-8")


def reproduce(out: Path, shards: Path, *, jobs: int = 1, seeds: int = 1, only: str | None = None) -> Path | None:
    """Run what is left of it; the page."""
    asked = Asked("digits", shards, seeds, CHANGES, ())
    return run(TABLE, out, asked, at_once=jobs, only=only, console=Console(quiet=True))
