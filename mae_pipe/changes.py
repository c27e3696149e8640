"""Changes of a recipe's keys, as text or as a dict."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from mae_pipe.errors import RecipeError

Changes = Iterable[str] | Mapping[str, Any]  # "data.global_batch=512", or {"data.global_batch": 512}
FREE = (  # a resumed run may change them
    "about",
    "logging",
    "monitor",
    "saving",
    "faults",
    "eval_every_epochs",
    "data.workers",
    "data.worker_kind",
    "data.micro_batch",
    "engine",
)
BAND = "monitor.band"
# after these a recipe's losses are still within its band, or should be: it tells a wrong learning rate
SAME_LOSS = (*FREE, "seed", "optimizer", "target.options.tokenizer")
PLUGINS = ("method.name", "mask.name", "target.name", "head.name")


def pairs(changes: Changes) -> list[tuple[str, Any]]:
    """(name, value) of each."""
    return list(changes.items() if isinstance(changes, Mapping) else map(_assigned, changes))


def apply(values: dict[str, Any], changes: Changes) -> None:
    """Make them in a recipe's ``values``; where one names another plugin, the options of the old one go.

    A recipe's band of losses is of the recipe as it is: where a change leads to other losses, it goes too.

    Raises:
        RecipeError: one is not of the form key=value, or its table is none.
    """
    named = sorted(pairs(changes), key=lambda pair: pair[0] not in PLUGINS)  # options come after their name
    others = [name for name, value in named if _set(values, name, value) and not within(name, SAME_LOSS)]
    if others and not within(BAND, dict(named)) and isinstance(values.get("monitor"), dict):
        values["monitor"].pop("band", None)


def within(name: str, names: Iterable[str]) -> bool:
    """Whether a dotted name is one of ``names``, or a key in one that is a table."""
    return any(f"{name}.".startswith(f"{one}.") for one in names)


def _assigned(change: str) -> tuple[str, Any]:
    """``a.b=c`` -> name and value; c is TOML, or else a plain string."""
    name, separator, text = change.partition("=")
    if not separator or not name.strip():
        raise RecipeError(f"--set {change!r} is not of the form key=value, such as data.global_batch=512")
    try:
        return name.strip(), tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), text.strip()


def _set(values: dict[str, Any], name: str, value: Any) -> bool:
    """Set a key; whether it had another value."""
    *tables, last = name.split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise RecipeError(f"the change of {name!r}: {table!r} is a value and has no keys; name it alone")
    if name in PLUGINS and value != values.get(last):
        values.pop("options", None)
    before, values[last] = values.get(last), value
    return bool(before != value)
