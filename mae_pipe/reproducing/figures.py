"""A table's curves, drawn as the paper draws them: ours in one panel, the paper's in the other."""

from __future__ import annotations

from collections.abc import Callable

from mae_pipe.charts import Line, chart
from mae_pipe.reproducing.findings import Findings, Found

NAMES = {"finetuned": "finetuned", "linear": "linear probe"}


def panels(found: Findings) -> list[tuple[str, str, str]]:
    """(measure, ours, the paper's) as SVG; empty for a table that is no figure."""
    table = found.study.table
    if not table.x_label:
        return []

    def drawn(measure: str) -> tuple[str, str, str]:
        ours = _panel(found, measure, "ours", lambda row: (row.x, row.numbers[measure].mean))
        theirs = _panel(found, measure, "paper", lambda row: (row.row.x, row.numbers[measure].paper))
        return NAMES[measure], ours, theirs

    return [drawn(measure) for measure in table.measures]


def _panel(
    found: Findings, measure: str, whose: str, point: Callable[[Found], tuple[float | None, float | None]]
) -> str:
    table = found.study.table
    lines = []
    for series in dict.fromkeys(row.row.series for row in found.rows):
        placed = [point(row) for row in found.rows if row.row.series == series]
        points = [(x, y) for x, y in placed if x is not None and y is not None]
        if points:
            lines.append(Line(series or NAMES[measure], [x for x, _ in points], [y for _, y in points], dots=True))
    if not lines:
        return ""
    return chart(
        lines,
        title=f"{table.where}, {NAMES[measure]}, {whose}",
        x_label=table.x_label,
        y_label="top-1, %",
        size=(4.6, 2.7),
        x_scale=table.x_scale,
    )
