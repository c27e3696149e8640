"""A picture of maps: each image, its true map and the predicted one, with the names of the classes in it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mae_pipe.data.batch import IGNORE
from mae_pipe.data.order import Share
from mae_pipe.data.stream import Stream
from mae_pipe.disk import write_whole, writing
from mae_pipe.fitting import Plain
from mae_pipe.recipe import Sliding
from mae_pipe.seeding import uniforms
from mae_pipe.sliding import Slider

COUNT = 6  # images, spread evenly over the split
NAMES = 30  # in the legend
NOTHING = (0.85, 0.85, 0.85)  # where a true map has no class


class Shown(NamedTuple):
    """One image: pixels [h, w, C] uint8, true and predicted map [H, W] int64, and its key."""

    pixels: NDArray[np.uint8]
    truth: NDArray[np.int64]
    guess: NDArray[np.int64]
    key: str


def shown(model: Plain, stream: Stream, sliding: Sliding) -> list[Shown]:
    """Always the same images: whole by windows where the run slides them, else their centre views. One rank's work."""
    numbers = np.unique(np.linspace(0, len(stream.index) - 1, COUNT).round().astype(np.int64))
    keys = [stream.index.key(int(number)) for number in numbers]
    model.train(False)
    if sliding.stride is not None:
        slider = Slider(stream, sliding, len(stream.shelf.manifest.classes_of("map")))
        return [Shown(*slider.shown(model, int(n)), key) for n, key in zip(numbers, keys, strict=True)]
    calm, share = stream.data.model_copy(update={"workers": 0}), Share(micro_batch=len(numbers))
    few = Stream(stream.shelf, calm, seed=0, share=share, training=False, rows=numbers, labels="map")
    with torch.no_grad(), closing(few.once()) as batches:  # type: ignore[type-var]
        batch = next(batches)
        guess = model(batch.to(model.device), mode="scores").argmax(dim=1).cpu().numpy()
    pixels = batch.pixels.permute(0, 2, 3, 1).numpy()
    return [Shown(*parts) for parts in zip(pixels, batch.labels.numpy(), guess, keys, strict=True)]


def save(rows: Sequence[Shown], classes: Sequence[str], path: Path) -> None:
    """Write the picture as PNG, whole or not at all."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    colours = _colours(len(classes))
    figure = Figure(figsize=(9.5, 2.6 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), 3, squeeze=False)
    for axes, row in zip(grid, rows, strict=True):
        grey = row.pixels.shape[-1] != 3
        axes[0].imshow(row.pixels[..., 0] if grey else row.pixels, cmap="gray" if grey else None)
        for place, found in ((1, row.truth), (2, row.guess)):
            axes[place].imshow(_painted(found, colours), interpolation="nearest")
        axes[0].set_ylabel(row.key if len(row.key) <= 28 else f"...{row.key[-25:]}", fontsize=7)
        for each in axes:
            each.set_xticks([])
            each.set_yticks([])
    for axes, title in zip(grid[0], ("image", "truth", "prediction"), strict=True):
        axes.set_title(title, fontsize=10)
    present = sorted({int(c) for row in rows for found in (row.truth, row.guess) for c in np.unique(found)} - {IGNORE})
    handles = [Patch(color=tuple(colours[number]), label=classes[number]) for number in present[:NAMES]]
    if any((row.truth == IGNORE).any() for row in rows):
        handles.append(Patch(color=NOTHING, label="no class"))
    if len(present) > NAMES:
        handles.append(Patch(color=(1, 1, 1), label=f"and {len(present) - NAMES} more"))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110, metadata={"Software": None})
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, drawn.getvalue())


def _colours(count: int) -> NDArray[np.float64]:
    """[count, 3]: matplotlib's twenty first, then colours that a class's number decides."""
    from matplotlib import colormaps

    first = np.array(colormaps["tab20"].colors)[[*range(0, 20, 2), *range(1, 20, 2)]]  # type: ignore[attr-defined]
    more = 0.15 + 0.7 * uniforms(0, np.arange(max(0, count - len(first))), 3)
    return np.concatenate([first, more])[:count]


def _painted(found: NDArray[np.int64], colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """[H, W] classes -> [H, W, 3]."""
    known = found != IGNORE
    painted = np.broadcast_to(np.array(NOTHING), (*found.shape, 3)).copy()
    painted[known] = colours[found[known]]
    return painted
