"""A folder of many sets of images, such as ImageNet-C's corruption/severity -> the sets."""

from __future__ import annotations

import os
from pathlib import Path

from mae_pipe.data.manifest import NAME
from mae_pipe.errors import DataError


def sets_below(folder: Path) -> dict[str, Path]:
    """Name -> folder of every set below ``folder``, by name: shards, or folders of classes that hold files.

    Raises:
        DataError: there is none.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; --each wants one whose sub-folders are sets of images")
    found = {str(path.relative_to(folder)): path for path in _below(folder)}
    found.pop(".", None)
    if not found:
        raise DataError(
            f"{folder} has no sub-folders SET/CLASS/IMAGE, nor shards; leave --each out if it is one set itself"
        )
    return dict(sorted(found.items()))


def _below(folder: Path) -> list[Path]:
    if (folder / NAME).is_file():
        return [folder]
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    if any(_has_files(one) and not (one / NAME).is_file() for one in inner):
        return [folder]
    return [found for one in inner for found in _below(one)]


def _has_files(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.is_file() and entry.name[0] != "." for entry in entries)
