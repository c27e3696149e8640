"""Classes of a set of images -> classes of a run, as sets such as ImageNet-A want that have a part of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from mae_pipe.errors import DataError, closest

SHAPES = "expected a .json object, or lines of NAME,CLASS: a folder of the set, and the run's class that it is"


def read_map(path: Path) -> dict[str, str]:
    """Name in the set -> name of the run's class, from a .json object or lines of two columns.

    Columns are parted by a tab, a comma, or else the first space.

    Raises:
        DataError: it cannot be read, or names a folder twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            pairs = json.loads(text, object_pairs_hook=list)
            if not isinstance(pairs, list) or not all(isinstance(p, tuple) and isinstance(p[1], str) for p in pairs):
                raise ValueError("it is not an object of text")
        else:
            pairs = [_columns(line, number) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a map of classes: {error}; {SHAPES}") from error
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path} has {twice!r} twice; keep one line for each folder")
    return found


def _columns(line: str, number: int) -> tuple[str, str]:
    if "\t" in line:
        parts = line.split("\t")
    elif "," in line:
        parts = next(csv.reader([line], strict=True))
    else:
        parts = line.split(None, 1)
    if len(parts) != 2:
        raise ValueError(f"line {number} has {len(parts)} columns")
    return parts[0].strip(), parts[1].strip()


def numbers_of(given: Sequence[str], classes: Sequence[str], named: dict[str, str], where: str) -> list[int]:
    """The run's class of each of the set's, several of which may be one.

    Args:
        given: names of the set's classes.
        classes: names of the run's.
        named: what ``read_map`` gave; names that are not in it stand for themselves.
        where: the set, for errors.

    Raises:
        DataError: a name leads to no class of the run.
    """
    known = {name: number for number, name in enumerate(classes)}
    found = []
    for name in given:
        meant = named.get(name, name)
        if meant not in known:
            how = f"which the map of classes calls {meant!r}, " if name in named else ""
            raise DataError(
                f"{where} has the class {name!r}, {how}and the run has no such class{closest(meant, known)}; "
                f"it has {_some(classes)}; say what it is with --class-map FILE"
            )
        found.append(known[meant])
    return found


def _some(names: Sequence[str]) -> str:
    said = ", ".join(map(repr, names[:5]))
    return said if len(names) <= 5 else f"{said} and {len(names) - 5} more"
