"""Plugins: ``@plugin("name")`` marks a class, a ``Catalog`` finds it by kind and name.

The catalogue reads the *source* of every installed plugin package (entry-point group
``mae_pipe.plugins``) and imports one module only when one of its plugins is asked for.
So ``mae-pipe plugins`` needs no torch, and a broken plugin hurts only those who name it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from mae_pipe import declared
from mae_pipe.api import VERSION
from mae_pipe.declared import GIVEN, KINDS, Declared, Option, of_signature
from mae_pipe.errors import PluginError, closest
from mae_pipe.options import checked

GROUP = "mae_pipe.plugins"
OWN = "mae-pipe"  # this distribution is read first: nobody can take a built-in's name

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
    """One installed plugin, known without importing it.

    Attributes:
        package: the distribution, or the path of a local file; ``version`` is the distribution's, "" of a file.
        api: for which version of ``mae_pipe.api`` it was built.
    """

    kind: str
    name: str
    package: str
    version: str
    module: str
    cls: str
    path: Path | None
    api: tuple[int, int]
    doc: str
    options: tuple[Option, ...] = ()

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return self.doc.partition("\n")[0]

    @property
    def signature(self) -> str:
        """All its options, with types and defaults."""
        return ", ".join(map(str, self.options)) or "no options"


@dataclass
class Catalog:
    """What is installed, plus local ``files`` given on the command line.

    A file's plugin hides an installed one of the same kind and name.
    """

    files: tuple[Path, ...] = ()
    broken: dict[str, str] = field(default_factory=dict)  # module or file -> why it could not be read
    _refused: dict[str, str] = field(default_factory=dict, init=False, repr=False)  # name -> why it cannot be used
    _local: dict[Path, ModuleType] = field(default_factory=dict, init=False, repr=False)

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
            for entry in self._of_file(path):
                found[entry.kind, entry.name] = entry
        return found

    def names(self, kind: str) -> list[str]:
        """The installed names of one kind, sorted."""
        return sorted(name for k, name in self.entries if k == kind)

    def entry(self, kind: str, name: str) -> Entry:
        """What is known of one plugin without importing it."""
        entry = self.entries.get((kind, name))
        if entry is None:
            self.refuse(name)
            known = self.names(kind)
            raise PluginError(
                f"there is no {kind} plugin {name!r}{closest(name, known)}; installed are {', '.join(known) or 'none'}"
            )
        return entry

    def refuse(self, name: str) -> None:
        """Raise for a name that only a plugin for another version of ``mae_pipe.api`` has."""
        if name in self._refused:
            raise PluginError(self._refused[name])

    def find(self, kind: str, name: str) -> type[Any]:
        """The class of one plugin; imports its module only."""
        entry = self.entry(kind, name)
        for path in self.files:
            if entry.module == _name_of(path):
                return getattr(self._module(path), entry.cls)  # type: ignore[no-any-return]
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
        taken = given
        if not any(p.kind is p.VAR_KEYWORD for p in asked.values()):
            taken = {word: value for word, value in given.items() if word in asked}
        try:
            return cls(**taken, **checked(cls, options, given))
        except (TypeError, ValueError, OSError) as error:
            raise PluginError(
                f"the {kind} plugin {name!r} refuses its options: {error}; it takes {self.entry(kind, name).signature}"
            ) from error

    def record(self, kind: str, name: str) -> dict[str, str]:
        """What a run keeps of a plugin that it used: kind, name, package, version, and its source file's sha256."""
        entry = self.entry(kind, name)
        digest = hashlib.sha256(entry.path.read_bytes()).hexdigest() if entry.path else ""
        return {"kind": kind, "name": name, "package": entry.package, "version": entry.version, "sha256": digest}

    def _of_entry_point(self, point: EntryPoint) -> Iterator[Entry]:
        package, version = _package(point), point.dist.version if point.dist else ""
        try:
            found = list(declared.declared(point.module))
            if not found:  # marked in a way that the source does not show
                yield from _of_module(importlib.import_module(point.module), package, version)
            for marked in found:
                if self._fits(marked, package):
                    yield from _entries(marked, package, version, lambda m: importlib.import_module(m.module))
        except (Exception, SystemExit) as error:  # a stranger's package: named in the list, never in the way
            self.broken[point.value] = " ".join(f"{type(error).__name__}: {error}".split())

    def _of_file(self, path: Path) -> Iterator[Entry]:
        """The plugins of a local file; what is wrong with it is said at once, since its user named it."""
        if not path.is_file():
            raise PluginError(f"there is no plugin file {path}; give the path of a Python file")
        if path.suffix != ".py":
            raise PluginError(f"{path} is not a Python file; a plugin file ends in .py")
        try:
            found = list(declared.declared(_name_of(path), path))
        except (SyntaxError, ValueError) as error:
            raise PluginError(f"the plugin file {path} cannot be loaded: {type(error).__name__}: {error}") from error
        entries = list(_of_module(self._module(path), str(path), "")) if not found else []
        if not found and not entries:
            raise PluginError(f"the plugin file {path} holds no class marked @plugin(name)")
        yield from entries
        for marked in found:
            if self._fits(marked, str(path)):
                yield from _entries(marked, str(path), "", lambda m: self._module(m.path))

    def _fits(self, marked: Declared, package: str) -> bool:
        """Whether a plugin was built for this version of ``mae_pipe.api``; if not, it is said when it is named."""
        (major, minor), now = marked.api, f"{VERSION[0]}.{VERSION[1]}"
        if major == VERSION[0] and minor <= VERSION[1]:
            return True
        why = f"built for version {major}.{minor} of mae_pipe.api, and this mae-pipe has {now}"
        self.broken[f"{marked.module}.{marked.cls}"] = why
        newer = marked.api > VERSION
        self._refused.setdefault(
            marked.name,
            f"the plugin {marked.name!r} of {package} was {why}; "
            + (f"upgrade mae-pipe, or take a {package} for {VERSION[0]}" if newer else f"upgrade {package}"),
        )
        return False

    def _module(self, path: Path) -> ModuleType:
        """A local plugin file as a module of its own, run once."""
        if path not in self._local:
            self._local[path] = _import_file(path)
        return self._local[path]


def _package(point: EntryPoint) -> str:
    """The distribution that an entry point belongs to."""
    return point.dist.name if point.dist else "unknown"


def _entries(marked: Declared, package: str, version: str, load: Callable[[Declared], ModuleType]) -> Iterator[Entry]:
    if marked.kind is None or marked.options is None:  # only importing tells
        yield from (e for e in _of_module(load(marked), package, version) if e.cls == marked.cls)
    else:
        yield Entry(
            marked.kind,
            marked.name,
            package,
            version,
            marked.module,
            marked.cls,
            marked.path,
            marked.api,
            marked.doc,
            marked.options,
        )


def _of_module(module: ModuleType, package: str, version: str) -> Iterator[Entry]:
    """The marked classes of an imported module."""
    path = Path(module.__file__) if module.__file__ else None
    for value in list(vars(module).values()):
        name = vars(value).get("__plugin__") if isinstance(value, type) else None
        if name and value.__module__ == module.__name__:
            kind = kind_of(value)
            if kind is None:
                raise PluginError(
                    f"{value.__name__} in {package} is marked @plugin({name!r}) but derives from no contract; "
                    f"expected one of {', '.join(KINDS)}"
                )
            doc, options = inspect.cleandoc(value.__doc__ or ""), of_signature(value, GIVEN.get(kind, set()))
            cls, api = value.__name__, declared.FIRST_API
            yield Entry(kind, name, package, version, module.__name__, cls, path, api, doc, options)


def _name_of(path: Path) -> str:
    """Of a local file's module: two files of one name are two modules."""
    return f"mae_pipe_local_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"


def _import_file(path: Path) -> ModuleType:
    name = _name_of(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise PluginError(f"the plugin file {path} cannot be loaded: {type(error).__name__}: {error}") from error
    return module
