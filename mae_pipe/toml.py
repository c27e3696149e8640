"""A recipe as TOML: written out with a comment beside each value, and read with the comments of its file."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

_PIECES = re.compile(
    r'"""(?:[^\\]|\\.)*?"""(?!")'  # strings of several lines come first: they begin as empty ones do
    r"|'''.*?'''(?!')"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
    r"|\#[^\n]*"
    r"|[\n\[\]{}]"
    r"|[^\"'\#\n\[\]{}]+",
    re.DOTALL,
)


def statements(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, statement, comment) for each header and each `key = value` of valid TOML.

    Comments on lines of their own are left out. A value may go over several lines; the comments of all of them are its.
    """
    first, line, depth, code = 1, 1, 0, ""
    comments: list[str] = []
    for piece in (*_PIECES.findall(text), "\n"):
        if piece.startswith("#"):
            comments.append(piece.removeprefix("#").strip())
        elif piece == "\n" and depth == 0:
            if code.strip():
                yield first, code.strip(), "; ".join(filter(None, comments))
            first, code, comments = line + 1, "", []
        else:
            code += piece
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(piece, 0)
        line += piece.count("\n")


def comments_of(text: str) -> dict[str, tuple[int, str]]:
    """Dotted key -> its line, and the comment beside it or else beside its table's header; "" where both are silent."""
    found: dict[str, tuple[int, str]] = {}
    table, beside = "", ""
    for line, statement, comment in statements(text):
        keys = flat(tomllib.loads(statement))
        if statement.startswith("["):
            table, beside = f"{next(iter(keys))}.", comment
        else:
            found |= {table + key: (line, comment or beside) for key in keys}
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {prefix + name: value}
    return found


def written(values: Mapping[str, Any], beside: Mapping[str, str], below: Mapping[str, str]) -> str:
    """TOML of ``values``, tables last; None is left out, as absent is the same.

    Args:
        beside: dotted key -> the comment at the end of its line.
        below: dotted key -> a comment on the next line, also where the value is None.
    """
    return "\n".join(_table(values, (), beside, below)) + "\n"


def _table(
    values: Mapping[str, Any], path: tuple[str, ...], beside: Mapping[str, str], below: Mapping[str, str]
) -> Iterator[str]:
    if path:
        yield f"\n[{'.'.join(map(_key, path))}]"
    for key, value in values.items():
        name = ".".join((*path, key))
        if not isinstance(value, dict) and value is not None:
            yield f"{_key(key)} = {shown(value)}" + (f"  # {beside[name]}" if name in beside else "")
        if name in below:
            yield f"# {below[name]}"
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _table(value, (*path, key), beside, below)


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if bare else json.dumps(key, ensure_ascii=False)


def shown(value: Any) -> str:
    """One value as TOML."""
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_key(k)} = {shown(v)}' for k, v in value.items())} }}"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)  # JSON's strings, integers and booleans are TOML's
