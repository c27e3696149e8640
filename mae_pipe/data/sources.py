"""Where images come from: what a plugin of kind ``source`` promises, and which one reads a path."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mae_pipe.data.refusal import Refusal
from mae_pipe.data.sample import Origin
from mae_pipe.errors import DataError, MaePipeError

if TYPE_CHECKING:
    from mae_pipe.catalog import Catalog

BYTES = 512 << 20  # an image file that is larger is not read
FALLBACK = "folder"  # of folders that no other source knows


@dataclass(frozen=True, slots=True)
class Item:
    """One image as a source lists it, or what is none and why.

    Attributes:
        path: for people, and of which the sample key is made; "a/1.jpg".
        split: which it belongs to.
        label: its class's name, or its number; a tuple of them where images may have several; None: not known.
        place: where the source finds it; default: ``path``, after ``prefix``.
        prefix: of ``path`` where it lies in a folder of its split; "train/".
        refused: why it cannot be used, in a few words; "": it can.
    """

    path: str
    split: str = "train"
    label: str | int | tuple[str | int, ...] | None = None
    place: str = ""
    prefix: str = ""
    refused: str = ""


@dataclass(frozen=True)
class Asked:
    """What is asked of a listing.

    Attributes:
        arrays: whether .npy files are images too.
        labels: whether labels are wanted; without them images may lie anywhere.
        whole: whether all of it is one split, so that folders named like splits are classes.
    """

    arrays: bool = False
    labels: bool = True
    whole: bool = False


class ImageSource(ABC):
    """A place that images come from. Kind ``source``.

    It is built with its ``path`` in every process of a build, and opens nothing until it is asked. Files,
    checks, classes, splits, keys and parallel work are the trunk's. It is used by one thread at a time.

    Attributes:
        classes: names by number, set by ``items`` where a source knows them; None: those of the labels, sorted,
            or "0", "1", ... where all labels are numbers. Of a split where an image has a label, those without
            one are refused.
        sequential: whether reading images in another order than they are listed in takes far longer.
    """

    sequential: ClassVar[bool] = False
    SPLITS: ClassVar[tuple[str, ...]] = ("train", "val", "valid", "validation", "test")  # as folders are called
    classes: Sequence[str] | None = None

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    @abstractmethod
    def recognises(cls, path: Path) -> bool:
        """Whether this is how ``path`` is laid out, from a look at names; no other source should say so too."""

    @abstractmethod
    def items(self, asked: Asked) -> Iterator[Item]:
        """What is there, each split in the same order every time; decodes no image."""

    @abstractmethod
    def read(self, place: str) -> bytes:
        """The bytes of an image file, or ``Pixels``. Raises ``Refusal`` where this one image cannot be used."""

    def stamp(self, place: str) -> str:
        """What changes when an image does, without reading it: a build that goes on makes it again then.

        Default: size and time of the source's own file.
        """
        return f"{stamp_of(self.path)} {place}"

    def origin(self, place: str) -> Origin | None:
        """Which file holds the image's bytes as they are, so that training can read them there; None: none."""
        return None

    def close(self) -> None:
        """Let go of files. Default: nothing."""


def read_file(path: Path) -> bytes:
    """The bytes of an ordinary file of at most 512 MiB; else raises ``Refusal``."""
    try:
        # Not blocking, as somebody may have put a pipe here since the folder was listed.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:  # noqa: PTH123 (a descriptor)
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise Refusal("not a regular file")
            if found.st_size > BYTES:
                raise Refusal(f"{found.st_size:,} bytes, more than {BYTES:,}")
            return file.read()
    except OSError as error:
        raise Refusal(f"cannot be read: {error.strerror}") from None


def stamp_of(path: Path) -> str:
    """A file's size and time."""
    try:
        found = path.stat()
    except OSError:
        return "gone"
    return f"{found.st_size} {found.st_mtime_ns}"


def open_source(path: Path, name: str, catalog: Catalog, options: dict[str, Any]) -> ImageSource:
    """The source ``name`` of ``path``."""
    source: ImageSource = catalog.build("source", name, options, path=path)
    return source


def recognised(path: Path, catalog: Catalog) -> str:
    """The name of the source that knows how ``path`` is laid out.

    One that is broken is in nobody's way, unless no other knows the path.
    """
    if not path.exists():
        raise DataError(f"{path} is not there; give the folder or the file that holds the images")
    found, failed = [], ""
    for name in catalog.names("source"):
        try:
            source: type[ImageSource] = catalog.find("source", name)
            if name != FALLBACK and source.recognises(path):
                found.append(name)
        except MaePipeError as error:
            failed = f"; {error}"
        except Exception as error:  # whatever a stranger's source does
            failed = f"; the source plugin {name!r} failed: {type(error).__name__}: {error}"
    if len(found) > 1:
        raise DataError(f"{path} could be read by the sources {' and '.join(found)}; say which with --source")
    if found:
        return found[0]
    if not path.is_dir():
        known = ", ".join(catalog.names("source"))
        raise DataError(
            f"{path} is not a folder, nor a file that a source knows ({known}); give one, or say --source{failed}"
        )
    return FALLBACK
