"""The files of one split: paths, labels and keys, compactly."""

from __future__ import annotations

import os
import re
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mae_pipe.data.manifest import Refused

_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9_/-]")


class Strings:
    """Many strings in one block of memory: millions of paths cost little more than their letters."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("Q")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> str:
        start = self._ends[number - 1] if number else 0
        return os.fsdecode(bytes(self._bytes[start : self._ends[number]]))

    def append(self, text: str) -> None:
        self._bytes += os.fsencode(text)
        self._ends.append(len(self._bytes))


@dataclass
class Listing:
    """The files of one split, in their order.

    Attributes:
        folder: of the split; ``paths`` are relative to it.
        prefix: of the folder in the source, for people; "" or "train/".
        labels: a class number each, or -1.
        refused: what is no image file, and why.
    """

    split: str
    folder: Path
    prefix: str
    labelled: bool
    paths: Strings = field(default_factory=Strings)
    labels: array[int] = field(default_factory=lambda: array("i"))
    refused: list[Refused] = field(default_factory=list)
    renamed: dict[int, str] = field(default_factory=dict)  # keys that had to differ from their path's

    def __len__(self) -> int:
        return len(self.paths)

    def add(self, path: str, label: int) -> None:
        self.paths.append(path)
        self.labels.append(label)

    def refuse(self, path: str, reason: str) -> None:
        self.refused.append(Refused(path=printable(self.prefix + path), reason=reason))

    def key(self, number: int) -> str:
        """Unique in the split: the path without its suffix, made of ``[A-Za-z0-9_/-]``."""
        return self.renamed.get(number) or key_of(self.paths[number])

    def settle_keys(self) -> None:
        """Give the second, third, ... file of a key the endings -2, -3, ...; call once the listing is whole."""
        hashes = np.fromiter((hash(key_of(self.paths[n])) for n in range(len(self))), np.int64, len(self))
        known, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)

        def wanted_by_another(key: str) -> bool:
            place = int(np.searchsorted(known, hash(key)))
            return place < len(known) and int(known[place]) == hash(key)

        taken: set[str] = set()
        for number in np.flatnonzero(counts[inverse] > 1).tolist():
            key = wanted = key_of(self.paths[number])
            ending = 1
            while key in taken or (ending > 1 and wanted_by_another(key)):
                ending += 1
                key = f"{wanted}-{ending}"
            taken.add(key)
            if key != wanted:
                self.renamed[number] = key


def key_of(path: str) -> str:
    """A path as a sample key, before collisions are settled."""
    return _NOT_IN_KEYS.sub("_", path[: path.rindex(".")] if "." in path.rpartition("/")[2][1:] else path)


def printable(text: str) -> str:
    """A path as valid Unicode, whatever bytes it is made of."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")
