"""Writing that is whole or not at all, and says in a sentence why it could not be."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mae_pipe.errors import DiskError

_WHY = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder, then run the same command again",
    errno.EDQUOT: "your disk quota is used up; free some space or choose another folder, then run it again",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "you may not write there; choose another folder or change its permissions",
    errno.EPERM: "you may not write there; choose another folder or change its permissions",
    errno.EEXIST: "a file of that name is in the way; choose another folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another folder",
}


@contextlib.contextmanager
def writing(where: Path) -> Iterator[None]:
    """Turn the system's refusals to write into a ``DiskError`` that names ``where``."""
    try:
        yield
    except OSError as error:
        if error.errno in _WHY:
            raise DiskError(f"cannot write to {where}: {_WHY[error.errno]}") from error
        raise
    except RuntimeError as error:  # torch's zip writer keeps no errno
        if "PytorchStreamWriter" in str(error) or "unexpected pos" in str(error):
            raise DiskError(f"cannot write to {where}: {_WHY[errno.ENOSPC]}") from error
        raise


@contextlib.contextmanager
def going_on_without(what: str) -> Iterator[None]:
    """Say that ``what`` could not be written, instead of ending a run for it."""
    try:
        yield
    except (DiskError, OSError) as error:
        print(f"mae-pipe: {what} could not be written, and training goes on: {error}", file=sys.stderr, flush=True)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def writing_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, which takes the place of ``path`` when it is whole: synced, then renamed."""
    with writing(path.parent):
        new = path.with_name(f".{path.name}.tmp")
        with new.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        sync_folder(path.parent)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with writing_whole(path) as file:
        file.write(content)


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``out`` when all is written.

    Raises:
        DiskError: ``out`` holds something already, or cannot be written.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DiskError(f"{out} exists already; choose another --out")
    new = out.with_name(f".{out.name}.tmp")
    with writing(out.parent):
        shutil.rmtree(new, ignore_errors=True)  # of one that was killed
        new.mkdir(parents=True)
        try:
            yield new
            new.replace(out)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        sync_folder(out.parent)
