"""Checks of what any plugin says of itself."""

from __future__ import annotations

import ast

from mae_pipe.errors import PluginError
from mae_pipe.testing.subject import Skip, Subject, require


def documented(subject: Subject) -> None:
    """Its docstring says what it is, and every option has a type and is told of."""
    if subject.entry is None:
        raise Skip("only an installed plugin can be asked")
    entry = subject.entry
    require(bool(entry.summary), f"{entry.cls} has no docstring; its first line is what mae-pipe plugins shows")
    untyped = [option.name for option in entry.options if not option.type]
    require(not untyped, f"{entry.cls}.__init__ says no type for {', '.join(untyped)}; annotate them")
    untold = [option.name for option in entry.options if not option.about]
    require(
        not untold,
        f"the docstring of {entry.cls} says nothing of {', '.join(untold)}; "
        "write a line `name: what it is` below `Options:`, or a sentence with ``name``",
    )


def refuses_wrong_options(subject: Subject) -> None:
    """An option that it does not have is refused in one sentence with the signature."""
    if subject.entry is None or subject.catalog is None:
        raise Skip("only an installed plugin can be asked")
    entry, wrong = subject.entry, "no_option_of_this_name"
    try:
        subject.catalog.build(entry.kind, entry.name, {**subject.options, wrong: 1})
    except PluginError as error:
        require("\n" not in str(error), f"{entry.cls} refuses an unknown option in more than one line")
        return
    raise PluginError(
        f"{entry.cls} takes an option {wrong!r}: what a user mistypes would pass unseen; name all options"
    )


def imports_public_names(subject: Subject) -> None:
    """Of mae-pipe it imports only mae_pipe.api, whose names are kept."""
    if subject.entry is None or subject.entry.path is None:
        raise Skip("there is no source to read")
    path = subject.entry.path
    inner = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = [f"{node.module}.{a.name}" if node.module == "mae_pipe" else node.module for a in node.names]
        inner += [name for name in names if name.partition(".")[0] == "mae_pipe" and name not in PUBLIC]
    require(not inner, f"{path.name} imports {', '.join(sorted(set(inner)))}, which may change; import mae_pipe.api")


PUBLIC = ("mae_pipe.api", "mae_pipe.testing")
