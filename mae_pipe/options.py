"""A plugin's options against the annotations of its ``__init__``."""

from __future__ import annotations

import inspect
import json
import sys
import tomllib
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from mae_pipe.errors import PluginError, closest


def parsed(changes: Iterable[str]) -> dict[str, Any]:
    """``["blocks=3", "pool=mean"]`` -> options: each value is TOML, or else a plain string."""
    options: dict[str, Any] = {}
    for change in changes:
        name, separator, text = change.partition("=")
        if not separator or not name.strip():
            raise PluginError(f"--set {change!r} is not of the form option=value, such as height=2")
        try:
            options[name.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            options[name.strip()] = text.strip()
    return options


def checked(cls: type, options: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """``options`` as ``cls`` takes them: an int where a float is wanted becomes one, a list a tuple.

    Args:
        given: what the caller passes by name itself.

    Raises:
        ValueError: one is unknown, missing, or of another type, in a clause.
    """
    parameters = inspect.signature(cls).parameters
    named = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = [name for name in named if name not in given]
    for name in options:
        if name in given:
            raise ValueError(f"{name!r} is no option, mae-pipe gives it")
        if name not in named and not free:
            raise ValueError(f"there is no option {name!r}{closest(name, known)}")
    for name in known:
        if named[name].default is inspect.Parameter.empty and name not in options:
            raise ValueError(f"the option {name!r} must be given")
    return {name: _fitting(cls, name, value) for name, value in options.items()}


def _fitting(cls: type, name: str, value: Any) -> Any:
    """A value as its annotation says; as it is where there is none that can be read."""
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

    owner = next(c for c in cls.__mro__ if "__init__" in vars(c))
    note = inspect.get_annotations(vars(owner)["__init__"]).get(name, Any)
    try:
        hint = _resolved(note, sys.modules[owner.__module__])
        adapter: TypeAdapter[Any] = TypeAdapter(hint, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    except (NameError, TypeError, PydanticUserError):  # imported for the type checker only, or not a type
        return value
    try:
        text = json.dumps(value)
    except TypeError:  # an object, from Python
        text = None
    try:
        return adapter.validate_python(value) if text is None else adapter.validate_json(text)
    except ValidationError as error:
        alias = isinstance(note, str) and note.isidentifier() and not isinstance(hint, type)
        written = note if isinstance(note, str) and not alias else inspect.formatannotation(hint)
        if typing.get_origin(hint) is typing.Literal:
            written = " or ".join(map(repr, typing.get_args(hint)))
        constrained = typing.get_origin(hint) is typing.Annotated
        why = f" ({error.errors()[0]['msg'].removeprefix('Value error, ')})" if constrained else ""
        raise ValueError(f"{name} must be {written.replace('typing.', '')}, got {value!r}{why}") from None


def _resolved(note: Any, module: types.ModuleType) -> Any:
    """An annotation that may be written as a string, as a type."""
    holder = types.SimpleNamespace(__annotations__={"it": note})
    return typing.get_type_hints(holder, vars(module), include_extras=True)["it"]
