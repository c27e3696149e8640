"""Writes JPEGs that take as long to read as photos do, where there are none: noise of all sizes, in four classes.

python tools/make_photos.py FOLDER --images 1000
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 500, 375  # the mean of ImageNet's photos is about this
SIZES = (4, 8, 16, 32, 64, 128, 256)  # cells across; the finer, the weaker, as in photos


def write(folder: Path, number: int) -> None:
    """``folder/CLASS/NUMBER.jpg``; every number has its own picture."""
    random = np.random.default_rng(number)
    pixels = np.full((HEIGHT, WIDTH, 3), 128.0)
    for cells in SIZES:
        noise = random.integers(0, 256, (cells * HEIGHT // WIDTH + 1, cells, 3), dtype=np.uint8)
        smooth = Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        pixels += (np.asarray(smooth) - 128.0) * (4 / cells) ** 0.5
    path = folder / str(number % 4) / f"{number:06d}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, required=True)
    options = parser.parse_args()
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(write, options.folder), range(options.images), chunksize=8))
    files = list(options.folder.rglob("*.jpg"))
    print(f"{len(files)} JPEGs of {sum(path.stat().st_size for path in files) / len(files) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
