"""Whether a sample index agrees with itself and with its manifest, before anything believes it.

All rows are looked at when an index is opened; of one that is mapped (``index.MAPPED``) only the ends, and each row
when it is used. Where an image lies is for its reader to check, and what it holds for its checksum.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mae_pipe.data import index as indexes
from mae_pipe.data.arrays import PIXELS
from mae_pipe.data.index import SampleIndex
from mae_pipe.data.manifest import Manifest, Split
from mae_pipe.data.sample import ENCODINGS
from mae_pipe.errors import DataError
from mae_pipe.wording import counted

Rows = slice | NDArray[np.int64]
ALL = slice(None)
RAW, PLANAR = ENCODINGS.index("raw"), ENCODINGS.index("yuv420")


def is_whole(split: Split) -> bool:
    """Whether ``check`` looks at every row."""
    return split.index.bytes <= indexes.MAPPED


def check(folder: Path, manifest: Manifest, split: Split, index: SampleIndex) -> None:
    """Raise ``DataError`` where an index contradicts itself or the manifest."""
    whole = is_whole(split)
    what = wrong(index, split, manifest, whole=whole) or (strange_label(index, manifest) if whole else "")
    if what:
        raise _contradiction(folder, split, what)


def check_rows(folder: Path, manifest: Manifest, split: Split, index: SampleIndex, rows: NDArray[np.int64]) -> None:
    """``check`` of some rows of a mapped index, as they are used."""
    if is_whole(split):
        return
    what = _wrong_rows(index, split, rows) or strange_label(index, manifest, rows)
    if what:
        raise _contradiction(folder, split, what)


def _contradiction(folder: Path, split: Split, what: str) -> DataError:
    return DataError(f"the sample index {folder / split.index.name} {what}; copy it again or build the shards again")


def wrong(index: SampleIndex, split: Split, manifest: Manifest, *, whole: bool) -> str:
    """What contradicts what, as "has 3 rows, ..."; "" where nothing does. ``whole``: look at every row."""
    return next(_contradictions(index, split, manifest, whole), "")


def _contradictions(index: SampleIndex, split: Split, manifest: Manifest, whole: bool) -> Iterator[str]:
    rows = len(index)
    if not rows == split.images == split.index.images == sum(shard.images for shard in split.shards):
        yield f"has {counted(rows, 'row')}, the manifest says {split.images:,}"
    if split.marks and index.marks_end is None:
        yield "knows nothing of the file of marks"
    if split.maps and index.map_size is None:
        yield "does not say where each map lies"
    if split.labelled and manifest.labelling == "multi" and index.labels_end is None:
        yield "does not say which classes each image has"
    for ends, end, of in (
        (index.key_ends, len(index.key_bytes), "key"),
        (index.labels_end, 0 if index.labels_flat is None else len(index.labels_flat), "classes"),
        (index.marks_end, split.marks.bytes if split.marks else None, "marks"),
    ):
        if ends is None or end is None:
            continue
        if (int(ends[-1]) if rows else 0) != end or (whole and bool((ends[1:] < ends[:-1]).any())):
            yield f"does not say which {of} each image has"
    if not whole:
        return
    held = np.repeat(np.arange(len(split.shards)), [shard.images for shard in split.shards])
    if not np.array_equal(index.shard, held):
        yield "does not say which images each shard holds"
    yield _wrong_rows(index, split, ALL)


def strange_label(index: SampleIndex, manifest: Manifest, rows: Rows = ALL) -> str:
    """As ``wrong``, of labels that are no classes; lists of them are looked at whole, or not at all."""
    highest = int(index.label[rows].max(initial=-1))
    if index.labels_flat is not None and isinstance(rows, slice):
        highest = max(highest, int(index.labels_flat.max(initial=0) if len(index.labels_flat) else -1))
    if highest < len(manifest.classes):
        return ""
    return f"has the label {highest}, but there are {counted(len(manifest.classes), 'class')}"


def _wrong_rows(index: SampleIndex, split: Split, rows: Rows) -> str:
    encoding, size = index.encoding[rows], index.size[rows]
    width, height, label = index.width[rows].astype(np.uint64), index.height[rows].astype(np.uint64), index.label[rows]
    pixels = width * height
    planes = pixels + 2 * ((width + 1) // 2) * ((height + 1) // 2)
    checks: list[tuple[NDArray[np.bool_], str]] = [
        (index.shard[rows] >= len(split.shards), "in a shard that is not there"),
        (encoding >= len(ENCODINGS), "of an unknown encoding"),
        ((pixels == 0) | (pixels > PIXELS), "of a size that no image has"),
        ((encoding == RAW) & (size != 3 * pixels), "of raw pixels, and of another size in bytes"),
        ((encoding == PLANAR) & (size != planes), "of planes, and of another size in bytes"),
        (label < -1, "of a label below -1"),
    ]
    for bad, what in checks:
        if bad.any():
            place = int(bad.argmax())
            return f"has an image, in row {place if isinstance(rows, slice) else int(rows[place]):,}, {what}"
    return ""
