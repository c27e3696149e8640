"""Files that name classes: a table of images with any number of classes each, and a list of names."""

from __future__ import annotations

import csv
import hashlib
import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mae_pipe.data.listing import Listing, printable
from mae_pipe.errors import DataError

HEADERS = ("path", "file", "filename", "file_name", "image", "image_path", "name")  # of a first line that is a header
EXPECTED = "expected lines of PATH,CLASS;CLASS;..., with paths below the folder of images"


@dataclass(frozen=True)
class Lists:
    """The classes of one split's images: those of number n are ``flat[starts[n]:stops[n]]``; starts -1: not listed."""

    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    flat: NDArray[np.uint32]

    @classmethod
    def of_all(cls, lists: Iterable[tuple[int, ...] | None]) -> Lists:
        """Those given, image by image; None: not listed."""
        starts, stops, flat = array("q"), array("q"), array("I")
        for classes in lists:
            starts.append(-1 if classes is None else len(flat))
            flat.extend(sorted(set(classes or ())))
            stops.append(len(flat))
        return cls(np.array(starts, np.int64), np.array(stops, np.int64), np.array(flat, np.uint32))

    def of(self, number: int) -> tuple[int, ...] | None:
        """The rising class numbers of an image, or None where it is not listed."""
        start = int(self.starts[number])
        return None if start < 0 else tuple(self.flat[start : int(self.stops[number])].tolist())


def read(path: Path, listings: Sequence[Listing], names: Sequence[str] | None) -> tuple[list[str], list[Lists]]:
    """The classes of a table, and each listing's part of it.

    Args:
        names: of the classes in their order; default: those of the table, sorted.
    """
    places = _Places(listings)
    known = {name: number for number, name in enumerate(names or ())}
    lines, ends, flat = array("q"), array("q"), array("I")  # image places, ends in flat, classes as they come
    for line, name, classes in _rows(path):
        place = places.find(name)
        if place is None:
            if line == 1 and name.strip().lower() in HEADERS:
                continue
            raise DataError(f"{path}: line {line} lists {name!r}, but the folder holds no such image; {EXPECTED}")
        for one in classes:
            if one not in known and names is not None:
                raise DataError(f"{path}: line {line} has the class {one!r}, which is not among the class names")
            flat.append(known.setdefault(one, len(known)))
        lines.append(place)
        ends.append(len(flat))
    if not lines:
        raise DataError(f"{path} lists no image; {EXPECTED}")
    order = list(known) if names is not None else sorted(known)
    rank = np.empty(len(known), np.uint32)
    rank[[known[name] for name in order]] = np.arange(len(order))
    return order, _per_listing(path, places, lines, ends, rank[np.frombuffer(flat, np.uint32)] if flat else rank[:0])


def _per_listing(
    path: Path, places: _Places, lines: array[int], ends: array[int], flat: NDArray[np.uint32]
) -> list[Lists]:
    starts, stops = (np.full(places.total, -1, np.int64) for _ in range(2))
    at = 0
    for place, end in zip(lines, ends, strict=True):
        if starts[place] >= 0:
            raise DataError(f"{path} lists {printable(places.name(place))!r} twice; keep one line for each image")
        flat[at:end].sort()
        starts[place], stops[place] = at, end
        at = end
    bounds = places.bounds
    return [Lists(starts[a:b], stops[a:b], flat) for a, b in itertools.pairwise(bounds)]


def _rows(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """(number, path, class names) of each line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.reader(file, strict=True), 1):
                if not row:
                    continue
                if len(row) != 2:
                    raise DataError(f"{path}: line {number} has {len(row)} columns; {EXPECTED}")
                classes = [name.strip() for name in row[1].split(";")]
                yield number, row[0].strip().removeprefix("./"), list(dict.fromkeys(filter(None, classes)))
    except (OSError, UnicodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path} cannot be read as a table: {why}; {EXPECTED}") from error


class _Places:
    """Finds an image of several listings by its path in the source, by hashes: paths are not held twice."""

    def __init__(self, listings: Sequence[Listing]) -> None:
        self._listings = listings
        self.bounds = np.cumsum([0] + [len(listing) for listing in listings]).tolist()
        self.total = self.bounds[-1]
        hashes = np.fromiter((_hash(self.name(place)) for place in range(self.total)), np.uint64, self.total)
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def name(self, place: int) -> str:
        listing = int(np.searchsorted(self.bounds, place, "right")) - 1
        return self._listings[listing].prefix + self._listings[listing].paths[place - self.bounds[listing]]

    def find(self, name: str) -> int | None:
        wanted = np.uint64(_hash(name))
        at = int(np.searchsorted(self._hashes, wanted))
        while at < self.total and self._hashes[at] == wanted:
            place = int(self._order[at])
            if self.name(place) == name:
                return place
            at += 1
        return None


def _hash(name: str) -> int:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def class_names(path: Path) -> list[str]:
    """The lines of a file: the name of class 0, of class 1, ..."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path} cannot be read: {error}; expected a text file with a class name a line") from error
    while names and not names[-1]:
        names.pop()
    doubled = next((name for name in names if names.count(name) > 1), None)
    if not names or "" in names or doubled is not None:
        what = f"the name {doubled!r} twice" if doubled else "an empty line" if names else "no name"
        raise DataError(f"{path} has {what}; expected a class name a line, in the order of their numbers")
    return names
