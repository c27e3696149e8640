"""The files of one split: paths, labels and keys, compactly."""

from __future__ import annotations

import os
import re
from array import array
from dataclasses import dataclass, field

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
        prefix: of the split's folder in the source, "" or "train/"; ``paths`` are relative to it.
        labels: a class number each, or -1.
        places: where the source finds each; None: at its path.
        refused: what is no image file, and why.
    """

    split: str
    prefix: str
    labelled: bool
    paths: Strings = field(default_factory=Strings)
    labels: array[int] = field(default_factory=lambda: array("i"))
    places: Strings | None = None
    refused: list[Refused] = field(default_factory=list)
    renamed: dict[int, str] = field(default_factory=dict)  # keys that had to differ from their path's

    def __len__(self) -> int:
        return len(self.paths)

    def add(self, path: str, label: int, place: str = "") -> None:
        """The next image; either all of a listing have a place or none has."""
        if place and self.places is None and not len(self):
            self.places = Strings()
        if bool(place) != (self.places is not None):
            raise ValueError("give a place for all items of a split, or for none")
        self.paths.append(path)
        self.labels.append(label)
        if self.places is not None:
            self.places.append(place)

    def place(self, number: int) -> str:
        """Where the source finds an image."""
        return self.places[number] if self.places is not None else self.prefix + self.paths[number]

    def refuse(self, path: str, reason: str) -> None:
        self.refused.append(Refused(path=printable(self.prefix + path), reason=reason))

    def without_unlabelled(self, reason: str) -> Listing:
        """This listing; where images have labels, those that have none are refused."""
        if not self.labelled or -1 not in self.labels:
            return self
        kept = Listing(self.split, self.prefix, self.labelled, refused=self.refused)
        for number in range(len(self)):
            if self.labels[number] < 0:
                kept.refuse(self.paths[number], reason)
            else:
                kept.add(self.paths[number], self.labels[number], self.places[number] if self.places else "")
        return kept

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
    """A path as valid Unicode, whatever bytes it is made of; or other text of strangers."""
    try:
        return os.fsencode(text).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a letter, as JSON may have it
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
