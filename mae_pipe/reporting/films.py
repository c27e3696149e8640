"""The saved pictures of runs, set under each other: one run over its steps, several runs at their last."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_pipe import pictures
from mae_pipe.errors import MaePipeError
from mae_pipe.reporting.gathered import Run

MOMENTS = 6  # rows of the film of predictions
GAP = 6
TILE = 96  # pixels: smaller tiles are enlarged by whole numbers
PHOTO = 48  # pixels: tiles from there on are kept as WebP, which is a fifth of their PNG


@dataclass(frozen=True)
class Film:
    """The same fixed images in several rows, each row one strip of tiles as a data: address."""

    rows: tuple[tuple[str, str], ...]  # (label, address)
    images: int
    footer: str
    rules: tuple[int, ...] = ()  # the rows that a line stands above


def film(run: Path) -> Film | None:
    """The saved pictures of a run: input, masked, then the predictions of up to ``MOMENTS`` steps."""
    readable = _readable(run, MOMENTS)
    if not readable:
        return None
    last = readable[-1][2]
    rows = [("input", _strip(last["input"])), ("masked", _strip(last["masked"]))]
    rows += [(f"step {step:,}", _strip(cut["prediction"])) for step, _, cut in readable]
    rows.append(("pasted", _strip(last["pasted"])))
    return Film(tuple(rows), len(last["input"]), pictures.footer_of(readable[-1][1]), (2, len(rows) - 1))


def side_by_side(runs: Sequence[Run]) -> list[Film]:
    """The newest pictures of runs that drew the same images: a film for each set of images that several drew."""
    sets: dict[tuple[bytes, ...], list[tuple[Run, int, dict[str, list[Any]]]]] = {}
    for run in runs:
        if last := _readable(run.folder, 1):
            (step, _, cut) = last[0]
            sets.setdefault(tuple(tile.tobytes() for tile in cut["input"]), []).append((run, step, cut))
    films = []
    for drawn in sets.values():
        if len(drawn) < 2:
            continue
        rows = [("input", _strip(drawn[0][2]["input"]))]
        rules = []
        hidden: list[bytes] = []
        for run, step, cut in drawn:
            masked = [tile.tobytes() for tile in cut["masked"]]
            if masked != hidden:  # runs with the same patches hidden share one row of them
                rules.append(len(rows))
                rows.append(("masked", _strip(cut["masked"])))
                hidden = masked
            rows.append((f"{run.name}, step {step:,}", _strip(cut["pasted"])))
        films.append(Film(tuple(rows), len(drawn[0][2]["input"]), "", tuple(rules)))
    return films


def _readable(run: Path, moments: int) -> list[tuple[int, Path, dict[str, list[Any]]]]:
    """(step, path, tiles by stage) of so many pictures, the newest last; what is no picture of ours is left out."""
    found = []
    for path in _spread(sorted((run / "pictures").glob("step-*.png")), moments):
        try:
            found.append((int(path.stem.removeprefix("step-")), path, pictures.tiles(path)))
        except (MaePipeError, ValueError):
            continue
    return found


def _strip(tiles: Sequence[Any]) -> str:
    """Tiles side by side with clear gaps, as a data: address."""
    from PIL import Image, features

    side = tiles[0].width
    scale = max(1, round(TILE / side))
    strip = Image.new("RGBA", (len(tiles) * (side * scale + GAP) - GAP, side * scale), (0, 0, 0, 0))
    for number, tile in enumerate(tiles):
        large = tile.resize((side * scale, side * scale), Image.Resampling.NEAREST)
        strip.paste(large, (number * (side * scale + GAP), 0))
    packed = io.BytesIO()
    kind = "webp" if side >= PHOTO and features.check("webp") else "png"
    strip.save(packed, format=kind, **({"quality": 85} if kind == "webp" else {"optimize": True}))
    return f"data:image/{kind};base64," + base64.b64encode(packed.getvalue()).decode()


def _spread(items: Sequence[Path], count: int) -> list[Path]:
    """``count`` of them, the last and, of several, the first among them, closer together at the beginning."""
    if len(items) <= count or count == 1:
        return list(items[-count:])
    places: Callable[[int], int] = lambda n: round((len(items) - 1) * (n / (count - 1)) ** 1.5)  # noqa: E731
    return [items[place] for place in sorted({places(n) for n in range(count)})]
