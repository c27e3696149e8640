"""Pictures of segmentations: image, truth, prediction, and which colour is which class."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mae_pipe.data.batch import IGNORE
from mae_pipe.data.order import Share
from mae_pipe.data.stream import Stream
from mae_pipe.disk import going_on_without, write_whole, writing
from mae_pipe.reconstructing import visible_channels
from mae_pipe.sliding import Model

COUNT = 4  # images
TILE = 224  # pixels: a tile is at least that wide, enlarged by whole numbers
GAP, MARGIN, HEADER, LINE, SWATCH = 6, 18, 22, 20, 12
LEGEND = 40  # classes that are named at most, the most frequent ones
PAPER, INK = (255, 255, 255), (24, 28, 36)
NOWHERE = (128, 132, 140)  # of no class
STAGES = ("image", "truth", "prediction")


def palette(classes: int) -> NDArray[np.uint8]:
    """[256, 3]: a colour a class, those of near numbers far apart; grey for 255 and for what is no class."""
    table = np.full((256, 3), NOWHERE, np.uint8)
    for number in range(min(classes, IGNORE)):
        # Hues by the golden ratio never meet; brightness changes too, as 150 hues alone look alike.
        value, part = (0.95, 0.7, 0.5)[number % 3], (number * 0.618034) % 1.0 * 6
        ramp = [np.clip(abs((part + shift) % 6 - 3) - 1, 0, 1) for shift in (0, 4, 2)]
        table[number] = [round(255 * value * (0.2 + 0.8 * float(one))) for one in ramp]
    return table


@torch.no_grad()
def draw(model: Model, held_out: Stream, classes: Sequence[str], out: Path, *, active: bool) -> None:
    """Draw ``COUNT`` images spread evenly over a split, always the same ones, as their centre views.

    All ranks call it, as ZeRO 3 needs, and the one that is ``active`` writes; the model is in training mode after.
    Nothing is drawn where the output is no score of every class at every pixel.
    """
    micro = held_out.share.micro_batch
    rows = np.unique(np.linspace(0, len(held_out.index) - 1, min(COUNT, micro)).round().astype(np.int64))
    calm = held_out.data.model_copy(update={"workers": 0})
    share = Share(micro_batch=micro)
    stream = Stream(held_out.shelf, calm, seed=0, share=share, training=False, rows=rows, labels="map")
    batch = next(stream.once())
    model.train(False)
    scores: Tensor = model(batch.to(model.device), mode="scores")
    model.train()
    if not active or scores.shape != (len(batch.pixels), len(classes), *batch.labels.shape[1:]):
        return
    count = len(rows)
    images = visible_channels(batch.pixels[:count]).permute(0, 2, 3, 1).numpy()
    page = drawn(images, batch.labels[:count].numpy(), scores[:count].argmax(1).cpu().numpy(), classes)
    packed = io.BytesIO()
    page.save(packed, "PNG", optimize=True)
    with going_on_without(str(out)):
        with writing(out.parent):
            out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, packed.getvalue())


def drawn(
    images: NDArray[np.uint8], truth: NDArray[np.int64], guess: NDArray[np.int64], classes: Sequence[str]
) -> Image.Image:
    """A row for each of [B, H, W, 3] images with their maps [B, H, W]; below, names of the classes that are in them.

    Pixels that do not count are grey in the prediction too.
    """
    colours, count = palette(len(classes)), len(images)
    scale = max(1, round(TILE / images.shape[2]))
    height, width = images.shape[1] * scale, images.shape[2] * scale
    seen = np.bincount(np.concatenate([truth[truth != IGNORE], guess[truth != IGNORE]]), minlength=1)
    named = sorted(np.argsort(-seen, kind="stable")[: min(LEGEND, np.count_nonzero(seen))].tolist())
    across = len(STAGES) * (width + GAP) - GAP
    columns = max(1, across // 160)
    lines = -(-len(named) // columns)
    top = MARGIN + HEADER
    legend = top + count * (height + GAP) + GAP
    page = Image.new("RGB", (across + 2 * MARGIN, legend + lines * LINE + MARGIN), PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    shown = images, colours[truth], colours[np.where(truth == IGNORE, IGNORE, guess)]
    for column, (stage, tiles) in enumerate(zip(STAGES, shown, strict=True)):
        left = MARGIN + column * (width + GAP)
        pen.text((left + width / 2, MARGIN + 12), stage, fill=INK, font=font, anchor="ms")
        for row, tile in enumerate(tiles):
            picture = Image.fromarray(tile).resize((width, height), Image.Resampling.NEAREST)
            page.paste(picture, (left, top + row * (height + GAP)))
    for place, number in enumerate(named):
        x = MARGIN + place % columns * (across // columns)
        y = legend + place // columns * LINE
        pen.rectangle((x, y, x + SWATCH, y + SWATCH), fill=tuple(colours[number].tolist()))
        pen.text((x + SWATCH + 5, y - 1), classes[number][:20], fill=INK, font=font)
    return page
