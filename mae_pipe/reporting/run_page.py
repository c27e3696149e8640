"""The page of one run.

What a run does not have is left out. Everything that comes from data is escaped.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_pipe import pictures
from mae_pipe.charts import Line, chart, smoothed
from mae_pipe.errors import MaePipeError, RunError
from mae_pipe.outcome import Result, Row, finite, metrics, read_object, results, verdict
from mae_pipe.reporting.pages import filled

CHECKS = "checks.json"  # [{"claim", "holds", "detail"}]: what a demo compared
MOMENTS = 6  # rows of the film of predictions


@dataclass(frozen=True)
class Film:
    """The same fixed images at several steps, each row one strip of tiles as a data: address."""

    rows: tuple[tuple[str, str], ...]  # (label, address)
    images: int
    footer: str


def render(run: Path) -> str:
    """The page of a run folder as HTML."""
    train, evals = metrics(run)
    recipe, about = read_object(run / "recipe.json"), read_object(run / "run.json")
    if not (train or evals or recipe or about):
        raise RunError(f"{run} is not a run folder; give the folder that mae-pipe pretrain wrote with --out")
    found = results(run)
    return filled(
        "report.html.j2",
        title=run.resolve().name,
        about=recipe.get("about") or "",
        verdict=verdict(found, train),
        figures=_figures(train, about),
        results=found,
        best=max((result.score for result in found), default=1.0) or 1.0,
        checks=_checks(run / CHECKS),
        charts=_charts(train, evals, found),
        film=film(run),
        recipe=list(_flat(recipe)),
        environment=list(_flat({k: v for k, v in about.items() if k != "data"})),
        data=_data(about),
    )


def film(run: Path) -> Film | None:
    """The saved pictures of a run: input, masked, then the predictions of up to ``MOMENTS`` steps."""
    stored = sorted((run / "pictures").glob("step-*.png"))
    readable: list[tuple[int, Path, dict[str, list[Any]]]] = []
    for path in _spread(stored, MOMENTS):
        try:
            readable.append((int(path.stem.removeprefix("step-")), path, pictures.tiles(path)))
        except (MaePipeError, ValueError):
            continue
    if not readable:
        return None
    last = readable[-1][2]
    rows = [("input", _strip(last["input"])), ("masked", _strip(last["masked"]))]
    rows += [(f"step {step:,}", _strip(cut["prediction"])) for step, _, cut in readable]
    rows.append(("pasted", _strip(last["pasted"])))
    return Film(tuple(rows), len(last["input"]), pictures.footer_of(readable[-1][1]))


def _strip(tiles: Sequence[Any]) -> str:
    """Tiles side by side with clear gaps, as a data: address."""
    from PIL import Image

    side = tiles[0].width
    scale = max(1, round(96 / side))
    gap = 6
    strip = Image.new("RGBA", (len(tiles) * (side * scale + gap) - gap, side * scale), (0, 0, 0, 0))
    for number, tile in enumerate(tiles):
        large = tile.resize((side * scale, side * scale), Image.Resampling.NEAREST)
        strip.paste(large, (number * (side * scale + gap), 0))
    packed = io.BytesIO()
    strip.save(packed, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(packed.getvalue()).decode()


def _charts(train: Sequence[Row], evals: Sequence[Row], found: Sequence[Result]) -> dict[str, str]:
    """Those charts for which there are at least two points."""
    from markupsafe import Markup

    def series(name: str) -> tuple[list[float], list[float]]:
        rows = [row for row in train if finite(row.get(name))]
        return [row["step"] for row in rows], [row[name] for row in rows]

    drawn: dict[str, str] = {}
    steps, losses = series("loss")
    if len(steps) > 1:
        window = max(1, len(steps) // 40)
        lines = [Line("training loss", steps, smoothed(losses, window))]
        if window > 1:
            lines.append(Line("", steps, losses, faint=True))
        seen = [row for row in evals if finite(row.get("loss"))]
        if seen:
            lines.append(Line("evaluation loss", [r["step"] for r in seen], [r["loss"] for r in seen], dots=True))
        drawn["loss"] = chart(lines, title="Loss by step", x_label="step", size=(9.2, 2.9))
    small = (4.5, 2.1)
    for name, title, options in (
        ("lr", "Learning rate by step", {"y_from_zero": True}),
        ("images_per_second", "Images per second by step", {"y_from_zero": True}),
        ("wait_share", "Share of time waiting for data", {"y_from_zero": True, "percent": True}),
        ("grad_norm", "Gradient norm by step", {"y_from_zero": True}),
    ):
        steps, values = series(name)
        if len(steps) > 1:
            drawn[name] = chart([Line(title, steps, values)], title=title, x_label="step", size=small, **options)  # type: ignore[arg-type]
    curves = [result for result in found if len(result.curve) > 1]
    if curves:
        lines = [Line(r.name, [s for s, _ in r.curve], [v for _, v in r.curve], dots=True) for r in curves]
        drawn["scores"] = chart(lines, title="Score by step", x_label="step", size=(9.2, 2.9), percent=True)
    return {name: Markup(svg) for name, svg in drawn.items()}  # noqa: S704 (matplotlib escapes what it is given)


def _figures(train: Sequence[Row], about: Row) -> list[tuple[str, str]]:
    """The few numbers at the top: (value, what it is)."""
    if not train:
        return []
    last = train[-1]
    said: list[tuple[str, str]] = [(f"{last['step']:,}", "steps")]
    if finite(last.get("epoch")):
        said.append((f"{last['epoch']:,.4g}", "epochs"))
    if finite(last.get("images")):
        said.append((f"{last['images']:,}", "images seen"))
    if finite(last.get("loss")):
        said.append((f"{last['loss']:.4f}", "last loss"))
    speeds = sorted(row["images_per_second"] for row in train if finite(row.get("images_per_second")))
    if speeds:
        said.append((f"{speeds[len(speeds) // 2]:,.0f}", "images/s (median)"))
    waits = sorted(row["wait_share"] for row in train if finite(row.get("wait_share")))
    if waits:
        said.append((f"{100 * waits[len(waits) // 2]:.1f} %", "waiting for data (median)"))
    return said


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


def _flat(values: Row, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested tables as (dotted name, value) in their order."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield f"{prefix}{name}", " ".join(map(str, value)) if name == "command" else ", ".join(map(str, value))
        else:
            yield f"{prefix}{name}", "" if value is None else str(value)


def _spread(items: Sequence[Path], count: int) -> list[Path]:
    """``count`` of them, the first and the last among them, closer together at the beginning."""
    if len(items) <= count:
        return list(items)
    places: Callable[[int], int] = lambda n: round((len(items) - 1) * (n / (count - 1)) ** 1.5)  # noqa: E731
    return [items[place] for place in sorted({places(n) for n in range(count)})]
