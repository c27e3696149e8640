"""The page of one run. What a run does not have is left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mae_pipe.charts import OTHERS, Line, chart, smoothed
from mae_pipe.errors import MaePipeError
from mae_pipe.outcome import Result, Row, finite, repeated, verdict
from mae_pipe.reporting import tables
from mae_pipe.reporting.curves import SHARES, monitored, title_of
from mae_pipe.reporting.differences import environment, shown
from mae_pipe.reporting.films import film
from mae_pipe.reporting.gathered import Run
from mae_pipe.reporting.pages import filled
from mae_pipe.toml import flat

CHECKS = "checks.json"  # [{"claim", "holds", "detail"}]: what a demo compared
LARGE, SMALL = (9.2, 2.9), (4.7, 2.2)  # inches


def render(run: Run) -> str:
    """The page as HTML."""
    found = repeated(run.results)
    return filled(
        "report.html.j2",
        title=run.name,
        about=run.recipe.get("about") or "",
        verdict=verdict(run.results, run.train),
        warnings=[("", row) for row in run.rows.get("warning", [])],
        figures=_figures(run),
        results=tables.of_results([(tables.Cell(), group) for group in found]) if found else None,
        checks=_checks(run.folder / CHECKS),
        charts=_charts(run),
        scores=_scores(run.results),
        film=film(run.folder),
        recipe=[(key, shown(value)) for key, value in flat(run.recipe).items()],
        environment=_about(run.about),
        data=_data(run.about),
    )


def _charts(run: Run) -> list[tuple[str, Any, bool]]:
    """(heading, chart, whether it takes the whole width) of those numbers for which there are at least two points."""
    drawn = []

    def series(name: str, kind: str = "train") -> tuple[list[float], list[float]]:
        rows = [row for row in run.rows.get(kind, []) if finite(row.get(name))]
        return [row["step"] for row in rows], [row[name] for row in rows]

    def add(heading: str, lines: Sequence[Line], *, large: bool = False, **options: Any) -> None:
        title = f"{heading} by step"
        drawn.append((title, _svg(lines, title, LARGE if large else SMALL, **options), large))

    steps, losses = series("loss")
    if len(steps) > 1:
        window = max(1, len(steps) // 40)
        lines = [Line("training loss", steps, smoothed(losses, window))]
        if window > 1:
            lines.append(Line("", steps, losses, faint=True))
        for label, points in (
            ("evaluation loss", series("loss", "eval")),
            ("held-out loss", series("held_out_loss", "monitor")),
        ):
            if points[0]:
                lines.append(Line(label, *points, dots=True))
        add("Loss", [*_expected(run), *lines], large=True)
    for name in monitored([run]):
        points = series(name, "monitor")
        if len(points[0]) > 1:
            add(title_of(name), [Line("", *points, dots=True)], percent=name in SHARES)
    for name, heading, percent in (
        ("lr", "Learning rate", False),
        ("grad_norm", "Gradient norm", False),
        ("images_per_second", "Images per second", False),
        ("wait_share", "Share of time waiting for data", True),
    ):
        points = series(name)
        if len(points[0]) > 1:
            add(heading, [Line("", *points)], y_from_zero=True, percent=percent)
    return drawn


def _expected(run: Run) -> list[Line]:
    """The band of losses that the recipe expects, where it says one: its lower and its upper end."""
    band = run.recipe.get("monitor", {}).get("band") or []
    steps = [point[0] * run.steps_per_epoch for point in band]
    ends = (("expected, least and greatest", 1), ("", 2))
    return [Line(label, steps, [point[end] for point in band], look=OTHERS) for label, end in ends] if band else []


def _scores(found: Sequence[Result]) -> tuple[str, Any] | None:
    """Heading and chart of downstream scores by step, where some were measured more than once."""
    names = [result.name for result in found]
    lines = [
        Line(
            result.name if names.count(result.name) == 1 else f"{result.name} ({result.folder})",
            [step for step, _ in result.curve],
            [score for _, score in result.curve],
            dots=True,
        )
        for result in found
        if len(result.curve) > 1
    ]
    heading = f"Score by step: {lines[0].label}" if len(lines) == 1 else "Score by step, downstream"
    return (heading, _svg(lines, heading, LARGE, percent=True)) if lines else None


def _svg(lines: Sequence[Line], title: str, size: tuple[float, float], **options: Any) -> Any:
    from markupsafe import Markup

    return Markup(chart(lines, title=title, x_label="step", size=size, **options))  # noqa: S704 (matplotlib escapes)


def _figures(run: Run) -> list[tuple[str, str]]:
    """The few numbers at the top: (value, what it is)."""
    if not run.train:
        return []
    last = run.train[-1]
    known = (
        (last["step"], "{:,}", "steps"),
        (last.get("epoch"), "{:,.4g}", "epochs"),
        (last.get("images"), "{:,}", "images seen"),
        (last.get("loss"), "{:.4f}", "last loss"),
        (run.median("images_per_second"), "{:,.0f}", "images/s (median)"),
        (run.median("wait_share"), "{:.1%}", "waiting for data (median)"),
    )
    return [(form.format(value).replace("%", " %"), what) for value, form, what in known if finite(value)]


def _about(about: Row) -> list[tuple[str, str]]:
    values = environment(about) | flat({key: about[key] for key in ("created", "gone_on") if key in about})
    values |= {"command": " ".join(map(str, about["command"]))} if isinstance(about.get("command"), list) else {}
    return [(key, str(value) if key == "command" else shown(value)) for key, value in values.items()]


def _data(about: Row) -> dict[str, Any] | None:
    """Counts, conversions and refusals from the shards' manifest, where it is still there."""
    from mae_pipe.data.manifest import Manifest

    place = about.get("shards")
    if not isinstance(place, str):
        return None
    try:
        manifest = Manifest.load(Path(place))
    except (MaePipeError, OSError):
        return {"place": place, "manifest": None}
    return {"place": place, "manifest": manifest}


def _checks(path: Path) -> list[Row]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [row for row in rows if isinstance(row, dict) and {"claim", "holds", "detail"} <= set(row)]
