"""Writes betons with ffcv's own writer, and what ffcv's own reader finds in them; in a process of its own, as numba's
finalizers complain long afterwards."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from ffcv.fields import BytesField, FloatField, IntField, JSONField, NDArrayField, RGBImageField
from ffcv.reader import Reader
from ffcv.writer import DatasetWriter

SAMPLES = 23
PAGE = 2 << 20


def pixels(number: int) -> np.ndarray[Any, Any]:
    draw = np.random.default_rng(number)
    width, height = (int(side) for side in draw.integers(24, 90, 2))
    coarse = np.kron(draw.integers(0, 256, (6, 6, 3)), np.ones((15, 15, 1)))
    return (coarse + draw.normal(0, 5, coarse.shape)).clip(0, 255).astype(np.uint8)[:height, :width]


class Samples:
    """By number: an image and a class, or more."""

    def __init__(self, *more: Any) -> None:
        self._more = more

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, number: int) -> tuple[Any, ...]:
        return (pixels(number), number % 3, *(make(number) for make in self._more))


def write(path: Path, samples: Samples, **fields: Any) -> None:
    DatasetWriter(str(path), fields, page_size=PAGE, num_workers=2).from_indexed_dataset(samples, chunksize=4)


def found(path: Path) -> None:
    """Keep beside a beton the bytes that ffcv's tables lead to."""
    beton = Reader(str(path))
    sizes = dict(zip(beton.alloc_table["ptr"].tolist(), beton.alloc_table["size"].tolist(), strict=True))
    data, kept = path.read_bytes(), dict[str, Any]()
    for number, row in enumerate(beton.metadata["f0"]):
        start = int(row["data_ptr"])
        kept[f"{number}-{'raw' if row['mode'] else 'jpg'}"] = np.frombuffer(
            data[start : start + sizes[start]], np.uint8
        )
    np.savez(path.with_suffix(".npz"), **kept)


def main() -> None:
    folder = Path(sys.argv[1])
    for mode, options in (("jpg", {}), ("raw", {}), ("smart", {"smart_threshold": 9000}), ("proportion", {})):
        path = folder / f"{mode}.beton"
        write(path, Samples(), image=RGBImageField(write_mode=mode, jpeg_quality=92, **options), label=IntField())
        found(path)
    several = Samples(
        lambda number: {"labels": list(range(number % 4))},
        lambda number: np.frombuffer(b"text" * number, np.uint8),
        lambda number: number / 2,
        lambda number: np.full((3, 2), number, np.int16),
    )
    more = {"labels": JSONField(), "caption": BytesField(), "score": FloatField()}
    array = NDArrayField(np.dtype(np.int16), (3, 2))
    write(folder / "several.beton", several, picture=RGBImageField("jpg"), klass=IntField(), **more, array=array)
    found(folder / "several.beton")


if __name__ == "__main__":
    main()
