"""A label as it is written: a number, or a name."""

from __future__ import annotations

import re

from mae_pipe.api import DataError

TOP = 1 << 20  # no data set has as many classes; each has a name in the manifest


def label_of(value: object, where: str) -> int | str | tuple[int | str, ...] | None:
    """The class of an image; a tuple of a list of them."""
    if not isinstance(value, list):
        return number_or_name(value, where)
    return tuple(one for one in (number_or_name(part, where) for part in value) if one is not None)


def number_or_name(value: object, where: str) -> int | str | None:
    """The class of an image; None where nothing is said. "7" and 7 are the number 7."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"{where} has the label {str(value)[:60]!r}; expected a number or a name")
    if isinstance(value, str) and re.fullmatch(r"0|[1-9]\d{0,8}", value):
        value = int(value)
    if isinstance(value, int) and not 0 <= value < TOP:
        raise DataError(f"{where} has the label {value}; expected a class's number, 0 to {TOP - 1:,}")
    return value
