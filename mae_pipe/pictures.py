"""Pictures of reconstructions: input, masked, prediction, pasted; one strip an image.

A picture is a PNG that also says where its tiles lie (a text chunk), so that the report
can cut the predictions of many steps out and set them under each other.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from mae_pipe.disk import write_whole, writing
from mae_pipe.errors import RunError

Pixels = NDArray[np.uint8]  # [S, S, 3]

STAGES = ("input", "masked", "prediction", "pasted")
CHUNK = "mae-pipe"  # the PNG text chunk with the places of tiles
TILE = 112  # pixels: a tile is at least that wide, enlarged by whole numbers
GAP, MARGIN, HEADER, LINE = 6, 18, 24, 20
STRIPS = 2  # side by side, where there are more than four images
PAPER, INK, QUIET = (255, 255, 255), (24, 28, 36), (106, 114, 128)
HIDDEN = (128, 132, 140)  # what stands where a patch is hidden


@dataclass(frozen=True)
class Strip:
    """One image on its way through a model; each [S, S, 3] uint8."""

    input: Pixels
    masked: Pixels
    prediction: Pixels
    pasted: Pixels  # the prediction where hidden, the input where visible
    name: str = ""  # shown under the strip


def hide(pixels: Pixels, hidden: NDArray[np.bool_]) -> Pixels:
    """The image with its hidden pixels ([S, S] bool) in one even grey."""
    return np.where(hidden[..., None], np.array(HIDDEN, np.uint8), pixels)


def draw(strips: Sequence[Strip], *, title: str = "", footer: str = "") -> Image.Image:
    """All strips on one page, with a header over each column of strips.

    The tiles' places are in ``image.info[CHUNK]``, as ``save`` writes them.
    """
    if not strips:
        raise ValueError("a picture needs at least one strip")
    side = strips[0].input.shape[0]
    scale = max(1, round(TILE / side))
    tile = side * scale
    columns = 1 if len(strips) <= 4 else STRIPS
    rows = -(-len(strips) // columns)
    caption = LINE if any(strip.name for strip in strips) else 0
    width_of_strip = len(STAGES) * tile + (len(STAGES) - 1) * GAP
    heading = LINE + 6 if title else 0
    top = MARGIN + heading + HEADER
    width = 2 * MARGIN + columns * width_of_strip + (columns - 1) * 4 * GAP
    footer_lines = _wrap(footer, _font(12), width - 2 * MARGIN)
    height = top + rows * (tile + caption + GAP) - GAP + (8 + LINE * len(footer_lines)) + MARGIN
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    if title:
        pen.text((MARGIN, MARGIN), _elided(title, _font(15), width - 2 * MARGIN), fill=INK, font=_font(15))
    places: dict[str, list[tuple[int, int]]] = {stage: [] for stage in STAGES}
    for number, strip in enumerate(strips):
        # Down first, then across: the order of a list of files stays readable.
        column, row = divmod(number, rows)
        left = MARGIN + column * (width_of_strip + 4 * GAP)
        upper = top + row * (tile + caption + GAP)
        for at, stage in enumerate(STAGES):
            x = left + at * (tile + GAP)
            if row == 0:
                pen.text((x + tile / 2, top - 8), stage, fill=QUIET, font=_font(13), anchor="ms")
            image = Image.fromarray(getattr(strip, stage))
            page.paste(image.resize((tile, tile), Image.Resampling.NEAREST), (x, upper))
            places[stage].append((x, upper))
        if strip.name:
            name = _elided(strip.name, _font(12), width_of_strip)
            pen.text((left, upper + tile + 3), name, fill=QUIET, font=_font(12))
    for at, line in enumerate(footer_lines):
        lower = height - MARGIN - LINE * (len(footer_lines) - at)
        pen.text((MARGIN, lower + 4), line, fill=QUIET, font=_font(12))
    page.info[CHUNK] = json.dumps({"tile": tile, "side": side, "places": places, "footer": footer, "title": title})
    return page


def save(page: Image.Image, path: Path) -> None:
    """Write a page of ``draw`` as PNG, whole or not at all; the same page gives the same bytes."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(CHUNK, str(page.info[CHUNK]))
    packed = io.BytesIO()
    page.save(packed, format="PNG", pnginfo=chunks, optimize=True)
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, packed.getvalue())


def tiles(path: Path) -> dict[str, list[Image.Image]]:
    """The tiles of a saved picture by stage, each at its true size in pixels."""
    try:
        with Image.open(path, formats=("PNG",)) as opened:
            plan = json.loads(opened.info[CHUNK])
            page = opened.convert("RGB")
        tile, side = int(plan["tile"]), int(plan["side"])
        cut: dict[str, list[Image.Image]] = {}
        for stage in STAGES:
            boxes = [(int(x), int(y), int(x) + tile, int(y) + tile) for x, y in plan["places"][stage]]
            cut[stage] = [page.crop(box).resize((side, side), Image.Resampling.NEAREST) for box in boxes]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} is not a picture that mae-pipe drew; remove it") from error
    return cut


def footer_of(path: Path) -> str:
    """What stands under a saved picture."""
    with Image.open(path, formats=("PNG",)) as opened:
        return str(json.loads(opened.info.get(CHUNK, "{}")).get("footer", ""))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that Pillow carries: the same letters on every machine."""
    return ImageFont.load_default(size)


def _elided(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """``text``, shortened in its middle until it fits."""
    if font.getlength(text) <= width:
        return text
    keep = len(text) - 1
    while keep > 2 and font.getlength(f"{text[: keep // 2]}...{text[-(keep // 2) :]}") > width:
        keep -= 1
    return f"{text[: keep // 2]}...{text[-(keep // 2) :]}"


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(_elided(word, font, width))
    return lines
