"""Changes of a recipe's keys, as text or as a dict."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from mae_pipe.errors import RecipeError

Changes = Iterable[str] | Mapping[str, Any]  # "data.global_batch=512", or {"data.global_batch": 512}
PLUGINS = ("method.name", "mask.name", "target.name", "head.name")


def pairs(changes: Changes) -> list[tuple[str, Any]]:
    """(name, value) of each."""
    return list(changes.items() if isinstance(changes, Mapping) else map(_assigned, changes))


def apply(values: dict[str, Any], changes: Changes) -> None:
    """Make them in a recipe's ``values``; where one names another plugin, the options of the old one go.

    Raises:
        RecipeError: one is not of the form key=value, or its table is none.
    """
    for name, value in sorted(pairs(changes), key=lambda pair: pair[0] not in PLUGINS):  # options come after their name
        _set(values, name, value)


def _assigned(change: str) -> tuple[str, Any]:
    """``a.b=c`` -> name and value; c is TOML, or else a plain string."""
    name, separator, text = change.partition("=")
    if not separator or not name.strip():
        raise RecipeError(f"--set {change!r} is not of the form key=value, such as data.global_batch=512")
    try:
        return name.strip(), tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), text.strip()


def _set(values: dict[str, Any], name: str, value: Any) -> None:
    *tables, last = name.split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise RecipeError(f"the change of {name!r}: {table!r} is a value and has no keys; name it alone")
    if name in PLUGINS and value != values.get(last):
        values.pop("options", None)
    values[last] = value
