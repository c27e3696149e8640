"""Images of given shards, built in every format and read as a training reads them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

from mae_pipe import recipe
from mae_pipe.benching.choice import Figure
from mae_pipe.benching.cold import Cold, cold
from mae_pipe.benching.formats import Format, formats, short_side
from mae_pipe.benching.rates import Lane, rates
from mae_pipe.benching.taken import Taken
from mae_pipe.catalog import Catalog
from mae_pipe.data import region
from mae_pipe.data.fidelity import decibels
from mae_pipe.data.index import SampleIndex
from mae_pipe.data.manifest import Manifest, Split
from mae_pipe.data.shelf import Shelf
from mae_pipe.data.sources import FALLBACK
from mae_pipe.disk import writing
from mae_pipe.machine import processor
from mae_pipe.sharding import build

AS_STORED = "as stored"
SPLIT = "train"  # of what is built

Progress = Callable[[int, int, str], None]  # done, of how many, what is being done


@dataclass(frozen=True)
class Bench:
    """What was found.

    Attributes:
        figures: the given shards first.
        notes: a sentence each.
        images: in the split; ``taken`` of them were measured.
    """

    figures: list[Figure]
    cold: Cold
    notes: list[str]
    images: int
    taken: int
    workers: list[int]
    processor: str
    cores: int
    decoder: str


def bench(
    shards: Path,
    split: str,
    data: recipe.Data,
    *,
    catalog: Catalog,
    workers: Sequence[int] = (),
    images: int = 256,
    rounds: int = 3,
    seconds: float = 2.0,
    progress: Progress = lambda done, total, note: None,
) -> Bench:
    """Measure a split of shards as it is, and ``images`` of it in every other format.

    Args:
        data: the crops; its channels become those of the shards.
        workers: numbers of decoding threads; default: 1 and all cores.
        seconds: of a round, for each format and number of workers.
    """
    cores = len(os.sched_getaffinity(0))
    workers = sorted(set(workers or (1, cores)))
    with ExitStack() as done:
        shelf = done.enter_context(closing(Shelf(shards, split, catalog)))
        manifest, channels = shelf.manifest, shelf.manifest.channels
        taken = Taken.of(shelf, images)
        if data.channels != channels:  # what becomes of pixels afterwards costs the stream nothing
            data = data.model_copy(update={"mean": (0.5,) * channels, "std": (0.5,) * channels})
        if channels not in (1, 3):
            data = data.model_copy(update={"jitter": (0.0,) * 4})
        tried, notes = formats(manifest, split, taken, short_side(data.sides), catalog)
        with writing(Path(tempfile.gettempdir())):
            work = Path(done.enter_context(tempfile.TemporaryDirectory(prefix="mae-pipe-bench-")))
            taken.check_room(work.parent, [one.options for one in tried])
            taken.write(shelf, work / "images")
        if shelf.depot.far:
            notes.append("of shards that are fetched the first images are taken, and read from the cache")
        total, at = len(tried) + rounds * len(workers) * (1 + len(tried)), 0

        def tell(note: str) -> None:
            nonlocal at
            progress(at, total, note)
            at += 1

        figures, lanes = [_as_stored(shelf)], {AS_STORED: Lane(shelf, taken.rows)}
        for number, one in enumerate(tried):
            tell(f"building {one.name}")
            out = work / str(number)
            built = build(
                work / "images",
                out,
                catalog=catalog,
                workers=1,
                per_shard=len(taken.rows),
                splits=[SPLIT],
                source_name=FALLBACK,
                **one.options,
            )
            if not built.split(SPLIT).images:
                notes.append(f"{one.name} holds none of these images: {built.split(SPLIT).refused[0].reason}")
                continue
            lane = lanes[one.name] = Lane(done.enter_context(closing(Shelf(out, SPLIT, catalog))))
            figures.append(_figure(one, built, lane.shelf.index, shelf, taken))
        found = rates(lanes, data, workers=workers, rounds=rounds, seconds=seconds, progress=tell)
        figures = [replace(figure, rates=found[figure.name]) for figure in figures]
        disk = cold(shelf, threads=workers[-1], seconds=seconds)
        progress(total, total, "")
    figures[1:] = sorted(figures[1:], key=lambda figure: figure.split_bytes)
    return Bench(figures, disk, notes, len(shelf.index), len(taken.rows), workers, processor(), cores, region.decoder())


def _as_stored(shelf: Shelf) -> Figure:
    """The given shards."""
    split = shelf.split
    # Where the shards are lists of files, the images are not in them.
    held = max(sum(shard.bytes for shard in split.shards), int(shelf.index.size.sum()))
    held += split.marks.bytes if split.marks else 0
    return Figure(AS_STORED, "", held / len(shelf.index), held, _fidelity(split, split.squared_error))


def _figure(one: Format, built: Manifest, index: SampleIndex, given: Shelf, taken: Taken) -> Figure:
    """Of images that were built."""
    split = built.split(SPLIT)
    # From the first image to the end of the last: what else a file has does not grow with their number.
    held = int((index.offset + index.size).max() - index.offset.min()) + (split.marks.bytes if split.marks else 0)
    image = held / split.images * taken.usual(one.options) + taken.maps
    known = all(_fidelity(part, part.squared_error) is not None for part in (split, given.split))
    # What is lost twice adds up, about.
    far = _fidelity(split, split.squared_error + given.split.squared_error) if known else None
    return Figure(one.name, one.command, image, round(image * len(given.index)), far)


def _fidelity(split: Split, error: float) -> float | None:
    """In dB; infinite where no image is changed, None where none was compared."""
    return decibels(error, 1) if split.compared or not split.converted else None
