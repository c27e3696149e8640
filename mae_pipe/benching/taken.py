"""Images taken from shards and written out as files, of which shards in other formats are built."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae_pipe.data import decode
from mae_pipe.data.sample import ENCODINGS
from mae_pipe.data.shelf import Shelf
from mae_pipe.errors import DataError, DiskError
from mae_pipe.wording import counted, size_of

FEWEST = 16  # images of which anything is said
ENDINGS = {"jpeg": "jpg", "png": "png", "webp": "webp", "npy": "npy"}
PIXEL = {"planes": 1.5, "raw": 3.0}  # bytes


@dataclass(frozen=True)
class Taken:
    """Images of a split.

    Attributes:
        rows: of the sample index.
        jpegs, lossless: whether one of them is a JPEG; whether most are stored without loss.
        shortest: the shorter side of the image where that is largest, pixels.
        pixels: of all.
        held: bytes of all, as they are stored.
        usual_pixels, usual_bytes: of an image of the whole split, in those of one of these.
        maps: bytes of the map of one of them, on average; 0: there are none.
    """

    rows: NDArray[np.int64]
    jpegs: bool
    lossless: bool
    shortest: int
    pixels: int
    held: int
    usual_pixels: float
    usual_bytes: float
    maps: float

    @classmethod
    def of(cls, shelf: Shelf, images: int) -> Taken:
        """So many images, spread over a split; where shards have to be fetched, its first ones."""
        index, what = shelf.index, f"{shelf.name!r} of {shelf.depot.place}"
        if min(len(index), images) < FEWEST:
            trouble = f"{what} has {counted(len(index), 'image')}" if len(index) < FEWEST else f"--images is {images}"
            raise DataError(f"{trouble}, which is too few to measure anything; at least {FEWEST} are needed")
        last = min(images, len(index)) - 1 if shelf.depot.far else len(index) - 1
        rows = np.unique(np.linspace(0, last, images).round().astype(np.int64))
        shelf.check_rows(rows)
        kinds = index.encoding[rows]
        width, height = index.width[rows].astype(np.int64), index.height[rows].astype(np.int64)
        areas = index.width.astype(np.int64) * index.height
        maps = 0.0 if index.map_size is None else float(index.map_size[rows].mean())
        return cls(
            rows,
            bool((kinds == ENCODINGS.index("jpeg")).any()),
            float(np.isin(kinds, [ENCODINGS.index("png"), ENCODINGS.index("raw")]).mean()) > 0.5,
            int(np.minimum(width, height).max()),
            int(areas[rows].sum()),
            int(index.size[rows].sum()),
            float(areas.mean() / areas[rows].mean()),
            float(index.size.mean() / index.size[rows].mean()),
            maps,
        )

    def needs(self, options: Mapping[str, Any]) -> int:
        """About how many bytes they take in another format, at most."""
        kind = next((kind for kind in PIXEL if options.get(kind)), None)
        return int(self.pixels * PIXEL[kind]) if kind else self.held

    def usual(self, options: Mapping[str, Any]) -> float:
        """Bytes of an image of the whole split in another format, in those of one of these."""
        pixels = any(options.get(kind) for kind in (*PIXEL, "quality"))
        return 1.0 if options.get("short_side") else self.usual_pixels if pixels else self.usual_bytes

    def check_room(self, folder: Path, builds: list[Mapping[str, Any]]) -> None:
        """Refuse to fill a disk."""
        each = [self.needs(options) for options in builds]
        needed, free = self.held + sum(each) + max(each, default=0), shutil.disk_usage(folder).free
        if needed > free:
            raise DiskError(
                f"{folder} has room for {size_of(free)}, and {counted(len(self.rows), 'image')} in "
                f"{counted(len(builds), 'format')} need about {size_of(needed)}; give fewer --images, or set TMPDIR to "
                f"a folder with more room"
            )

    def write(self, shelf: Shelf, folder: Path) -> None:
        """Write them out as image files, without a change of any pixel."""
        # Of one class: what a format writes down for a label is then there, and counts.
        home = folder / "labelled" if shelf.split.labelled else folder
        home.mkdir(parents=True)
        for row in self.rows.tolist():
            stored = shelf.read(row)
            data, ending = bytes(stored.data), ENDINGS.get(stored.encoding)
            if ending is None:  # pixels
                picture, file = decode.picture(stored, shelf.manifest.channels), io.BytesIO()
                assert isinstance(picture, Image.Image)
                picture.save(file, "PNG", compress_level=1)
                data, ending = file.getvalue(), "png"
            (home / f"{row:09d}.{ending}").write_bytes(data)
