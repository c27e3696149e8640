"""A folder of images -> a folder of shards."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL

from mae_pipe import __version__
from mae_pipe.catalog import Catalog
from mae_pipe.data import parts
from mae_pipe.data.admit import Wishes
from mae_pipe.data.crew import make_all
from mae_pipe.data.listing import Listing
from mae_pipe.data.manifest import NAME, VERSION, Manifest, SampleIndex, Shard, Split, Statistics
from mae_pipe.data.place import INFO, check_places, claimed, clear, disk_error
from mae_pipe.data.sample import ShardFormat
from mae_pipe.data.scan import Source, scan
from mae_pipe.errors import DataError

PER_SHARD = 2000
RULES = 2  # of this build; another number makes every part again

Progress = Callable[[int, int, int], None]  # images done, refused among them, images in all


def build(
    source: Path,
    out: Path,
    *,
    format: str = "webdataset",
    catalog: Catalog,
    workers: int | None = None,
    per_shard: int | None = None,
    quality: int | None = None,
    max_side: int | None = None,
    short_side: int | None = None,
    splits: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Build shards of every image below ``source``; an interrupted build goes on where it was.

    The same input and options give the same bytes, whatever ``workers`` is.

    Args:
        format: a plugin of kind ``shards``.
        workers: processes; default: one a core.
        per_shard: source files a shard; default 2000.
        quality, max_side, short_side: see ``admit.Wishes``.
        splits: see ``scan.scan``.
        overwrite: replace what earlier builds left in ``out``; without it, new splits may join them.
    """
    writer: ShardFormat = catalog.build("shards", format, {})  # a format that is not there should not cost a scan
    check_places(source, out)
    per_shard = per_shard or PER_SHARD
    options = {
        "format": format,
        "rules": RULES,
        "per_shard": per_shard,
        "quality": quality,
        "max_side": max_side,
        "short_side": short_side,
        "splits": list(splits),
        "pillow": PIL.__version__,
    }
    plan = parts.Plan(
        out, format, catalog.files, Wishes(quality, max_side, short_side), json.dumps(options, sort_keys=True)
    )
    found = scan(source, splits)
    total = sum(len(listing) for listing in found.splits)
    counted = [0]

    def report(done: int, refused: int) -> None:
        counted[0] = done
        if progress:
            progress(done, refused, total)

    try:
        with claimed(out, plan, found, overwrite) as others:
            slices = [piece for listing in found.splits for piece in _slices(listing, per_shard)]
            crew = min(workers or len(os.sched_getaffinity(0)), len(slices))
            make_all(plan, (piece.run() for piece in slices), crew, writer.imports, report)
            clear(out, {piece.name for piece in slices})
            manifest = _merge(out, found, plan, others, slices)
        shutil.rmtree(out / parts.FOLDER)
    except OSError as error:
        raise disk_error(out, error, found, counted[0], total) from error
    return manifest


@dataclass(frozen=True)
class _Slice:
    """The files of one part, by number; ``run`` spells them out."""

    listing: Listing
    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"{self.listing.split}-{self.number:06d}"

    def run(self) -> parts.Run:
        listing = self.listing
        files = [(listing.paths[n], listing.key(n), listing.labels[n]) for n in range(self.start, self.stop)]
        return parts.Run(self.name, listing.folder, listing.prefix, files)


def _slices(listing: Listing, per_shard: int) -> Iterator[_Slice]:
    for number, start in enumerate(range(0, len(listing), per_shard)):
        yield _Slice(listing, number, start, min(start + per_shard, len(listing)))


def _merge(out: Path, found: Source, plan: parts.Plan, others: Manifest | None, slices: list[_Slice]) -> Manifest:
    """The finished parts as splits: their indexes, then the manifest, which makes the shards valid."""
    options = json.loads(plan.options)
    splits = {
        listing.split: _split(out, listing, [piece.name for piece in slices if piece.listing is listing])
        for listing in found.splits
    }
    if not any(split.images for split in splits.values()):
        first = next(split.refused[0] for split in splits.values() if split.refused)
        raise DataError(f"none of the images can be used; the first is {first.path}: {first.reason}")
    manifest = Manifest(
        version=VERSION,
        format=plan.format,
        created_by=f"mae-pipe {__version__}",
        options={**(others.options if others else {}), **dict.fromkeys(splits, options)},
        classes=found.classes or (others.classes if others else []),
        splits={**(others.splits if others else {}), **splits},
    )
    _save_info(out, manifest)
    manifest.save(out)
    parts.flush(out / NAME)
    parts.flush(out)
    return manifest


def _split(out: Path, listing: Listing, names: list[str]) -> Split:
    """Put the parts of one split together, and write its index."""
    shards: list[Shard] = []
    rows: list[SampleIndex] = []
    refused, converted = list(listing.refused), Counter[str]()
    pixels, values, squares, sides = 0, np.zeros(3, object), np.zeros(3, object), np.zeros(2, object)  # exact integers
    for name in names:
        part = parts.load(out, name)
        refused += part.refused
        converted.update(part.converted)
        if part.file is None:
            continue
        rows.append(replace(part.rows, shard=np.full(len(part.rows), len(shards), np.uint32)))
        shards.append(part.file)
        pixels += part.sums.pixels
        values, squares, sides = values + part.sums.values, squares + part.sums.squares, sides + part.sides
    images = sum(shard.images for shard in shards)
    index = out / f"{listing.split}.index.safetensors"
    draft = index.with_name(index.name + ".tmp")
    SampleIndex.joined(rows).save(draft)
    parts.settle(draft, index)
    mean = [float(value) / max(pixels, 1) / 255 for value in values]
    power = [float(square) / max(pixels, 1) / 255**2 for square in squares]
    return Split(
        images=images,
        shards=shards,
        index=Shard(name=index.name, images=images, bytes=index.stat().st_size, sha256=parts.sha256_of(index)),
        statistics=Statistics(
            mean=mean,
            std=[max(p - m * m, 0.0) ** 0.5 for p, m in zip(power, mean, strict=True)],
            mean_width=sides[0] / max(images, 1),
            mean_height=sides[1] / max(images, 1),
        ),
        labelled=listing.labelled,
        converted=dict(sorted(converted.items())),
        refused=sorted(refused, key=lambda entry: entry.path),
    )


def _save_info(out: Path, manifest: Manifest) -> None:
    """``_info.json``, in which timm's reader of tars looks up files and lengths."""
    if not all(shard.name.endswith(".tar") for split in manifest.splits.values() for shard in split.shards):
        return
    splits = {
        name: {
            "name": name,
            "num_samples": split.images,
            "filenames": [shard.name for shard in split.shards],
            "shard_lengths": [shard.images for shard in split.shards],
        }
        for name, split in manifest.splits.items()
    }
    path = out / INFO
    path.write_text(json.dumps({"name": "mae-pipe", "splits": splits}, indent=1) + "\n", encoding="utf-8")
