"""Plugins: ``@plugin("name")`` marks a class, a ``Catalog`` finds it by kind and name.

The catalogue reads the *source* of every installed plugin package (entry-point group
``mae_pipe.plugins``) and imports one module only when one of its plugins is asked for.
So ``mae-pipe plugins`` needs no torch, and a broken plugin hurts only those who name it.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from mae_pipe.errors import PluginError, closest

GROUP = "mae_pipe.plugins"
OWN = "mae-pipe"  # this distribution is read first: nobody can take a built-in's name
KINDS = {"MaskSampler": "mask", "Target": "target", "Head": "head", "Method": "method", "ShardFormat": "shards"}

C = TypeVar("C", bound=type)


def plugin(name: str) -> Callable[[C], C]:
    """Mark a class as the plugin ``name`` of the kind that its contract says. Registers nothing."""
    if not name or name != name.strip().lower():
        raise ValueError(f"a plugin's name is lower case without spaces around it, got {name!r}")

    def mark(cls: C) -> C:
        cls.__plugin__ = name  # type: ignore[attr-defined]
        return cls

    return mark


def kind_of(cls: type) -> str | None:
    """The kind of a plugin class, by the contract that it derives from."""
    return next((KINDS[base.__name__] for base in cls.__mro__[1:] if base.__name__ in KINDS), None)


@dataclass(frozen=True)
class Entry:
    """One installed plugin, known without importing it."""

    kind: str
    name: str
    package: str  # the distribution, or the file's path
    summary: str  # the first line of its docstring
    module: str
    cls: str
    options: tuple[str, ...] = ()  # "name: type = default"; of a local file "name = default"


@dataclass
class Catalog:
    """What is installed, plus local ``files`` given on the command line.

    A file's plugin hides an installed one of the same kind and name.
    """

    files: tuple[Path, ...] = ()
    broken: dict[str, str] = field(default_factory=dict)  # module or file -> why it could not be read

    @cached_property
    def entries(self) -> dict[tuple[str, str], Entry]:
        found: dict[tuple[str, str], Entry] = {}
        for point in sorted(entry_points(group=GROUP), key=lambda p: (_package(p) != OWN, p.value, p.name)):
            for entry in self._of_entry_point(point):
                other = found.setdefault((entry.kind, entry.name), entry)
                if other is not entry and other.module != entry.module:
                    self.broken[f"{entry.module}.{entry.cls}"] = (
                        f"{entry.kind} {entry.name!r} is already taken by {other.module}.{other.cls} of {other.package}"
                    )
        for path in self.files:
            module = _import_file(path)
            for entry in _of_module(module, str(path)):
                found[entry.kind, entry.name] = entry
        return found

    def names(self, kind: str) -> list[str]:
        """The installed names of one kind, sorted."""
        return sorted(name for k, name in self.entries if k == kind)

    def find(self, kind: str, name: str) -> type[Any]:
        """The class of one plugin; imports its module only."""
        entry = self.entries.get((kind, name))
        if entry is None:
            known = self.names(kind)
            raise PluginError(
                f"there is no {kind} plugin {name!r}{closest(name, known)}; installed are {', '.join(known) or 'none'}"
            )
        try:
            cls = getattr(importlib.import_module(entry.module), entry.cls)
        except (Exception, SystemExit) as error:  # whatever a stranger's module does on import
            raise PluginError(
                f"the {kind} plugin {name!r} of {entry.package} cannot be loaded: {type(error).__name__}: {error}; "
                f"mend or uninstall {entry.package}"
            ) from error
        return cls  # type: ignore[no-any-return]

    def build(self, kind: str, name: str, options: dict[str, Any], **given: Any) -> Any:
        """An instance: ``options`` by the user's recipe, and what it asks for by name of what is ``given``."""
        cls = self.find(kind, name)
        asked = inspect.signature(cls).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in asked.values()):
            given = {word: value for word, value in given.items() if word in asked}
        try:
            return cls(**given, **options)
        except (TypeError, ValueError) as error:
            takes = ", ".join(self.entries[kind, name].options) or "none"
            raise PluginError(f"the {kind} plugin {name!r} refuses its options: {error}; it takes {takes}") from error

    def _of_entry_point(self, point: EntryPoint) -> Iterator[Entry]:
        try:
            yield from _read(point.module, _package(point))
        except (Exception, SystemExit) as error:  # a stranger's package: named in the list, never in the way
            self.broken[point.value] = " ".join(f"{type(error).__name__}: {error}".split())


def _package(point: EntryPoint) -> str:
    """The distribution that an entry point belongs to."""
    return point.dist.name if point.dist else "unknown"


def _read(module: str, package: str) -> Iterator[Entry]:
    """The plugins of a module, and of a package's modules, from their source alone."""
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise ModuleNotFoundError(f"no module {module!r}")
    found = False
    for name, path in _sources(spec):
        with warnings.catch_warnings(action="ignore", category=SyntaxWarning):  # its author's affair
            tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and (marked := _mark(node)):
                base = next((KINDS[b] for b in map(_last_name, node.bases) if b in KINDS), None)
                if base is None:  # derives from another plugin: only importing tells its kind
                    yield from (e for e in _of_module(importlib.import_module(name), package) if e.cls == node.name)
                else:
                    summary = (ast.get_docstring(node) or "").strip().split("\n")[0]
                    yield Entry(base, marked, package, summary, name, node.name, _options(node))
                found = True
    if not found:  # marked in a way that the source does not show
        yield from _of_module(importlib.import_module(module), package)


def _sources(spec: importlib.machinery.ModuleSpec) -> Iterator[tuple[str, Path]]:
    if spec.submodule_search_locations is None:
        if spec.origin and spec.origin.endswith(".py"):
            yield spec.name, Path(spec.origin)
        return
    for folder in spec.submodule_search_locations:
        for path in sorted(Path(folder).glob("*.py")):
            yield (spec.name if path.stem == "__init__" else f"{spec.name}.{path.stem}"), path


def _mark(node: ast.ClassDef) -> str | None:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and _last_name(decorator.func) == "plugin" and decorator.args:
            first = decorator.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                return first.value
    return None


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _options(node: ast.ClassDef) -> tuple[str, ...]:
    """What a user may set: the arguments of ``__init__`` that have a default."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            positional = item.args.args[len(item.args.args) - len(item.args.defaults) :]
            pairs = [*zip(positional, item.args.defaults, strict=True)]
            pairs += [(a, d) for a, d in zip(item.args.kwonlyargs, item.args.kw_defaults, strict=True) if d]
            return tuple(f"{ast.unparse(argument)} = {ast.unparse(default)}" for argument, default in pairs)
    return ()


def _of_module(module: ModuleType, package: str) -> Iterator[Entry]:
    for value in list(vars(module).values()):
        name = vars(value).get("__plugin__") if isinstance(value, type) else None
        if name and value.__module__ == module.__name__:
            kind = kind_of(value)
            if kind is None:
                raise PluginError(
                    f"{value.__name__} in {package} is marked @plugin({name!r}) but derives from no contract; "
                    f"expected one of {', '.join(KINDS)}"
                )
            summary = (value.__doc__ or "").strip().split("\n")[0]
            parameters = inspect.signature(value).parameters.values()
            options = tuple(f"{p.name} = {p.default!r}" for p in parameters if p.default is not p.empty)
            yield Entry(kind, name, package, summary, module.__name__, value.__name__, options)


def _import_file(path: Path) -> ModuleType:
    """A local plugin file as a module of its own."""
    if not path.is_file():
        raise PluginError(f"there is no plugin file {path}; give the path of a Python file")
    name = f"mae_pipe_local_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{path} is not a Python file; a plugin file ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise PluginError(f"the plugin file {path} cannot be loaded: {type(error).__name__}: {error}") from error
    if not any(_of_module(module, str(path))):
        raise PluginError(f"the plugin file {path} holds no class marked @plugin(name)")
    return module
