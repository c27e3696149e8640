"""What the source of a plugin package says of its plugins, read without running any of it."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mae_pipe.docstrings import said_of

KINDS = {
    "MaskSampler": "mask",
    "Target": "target",
    "Head": "head",
    "Method": "method",
    "ShardFormat": "shards",
    "ImageSource": "source",
}
GIVEN = {
    "source": {"path"},
    "target": {"view"},
    "head": {"width", "classes", "class_tokens", "view"},
    "method": {
        *("encoder", "decoder", "sampler", "ratio", "target", "everywhere"),
        *("view", "classes", "epochs"),
    },
}  # by name to ``__init__``: no options
API = "MAE_PIPE_API"
FIRST_API = (1, 0)  # what a package that says nothing was built for
# Bases that take no arguments; a masked autoencoder takes what it is given alone.
INITLESS = {"object", "ABC", "Module", "Generic", "Protocol", "MaskedAutoencoder", *KINDS}


@dataclass(frozen=True)
class Option:
    """What a user may set of a plugin: an argument of its ``__init__``."""

    name: str
    type: str = ""  # as its annotation is written
    default: str | None = None  # as Python writes it; None: it must be given
    about: str = ""  # what the docstring says of it

    def __str__(self) -> str:
        typed = f"{self.name}: {self.type}" if self.type else self.name
        return typed if self.default is None else f"{typed} = {self.default}"


@dataclass(frozen=True)
class Declared:
    """A marked class, as its source has it; None where only importing can tell."""

    name: str
    module: str
    cls: str
    path: Path
    api: tuple[int, int]
    doc: str
    kind: str | None
    options: tuple[Option, ...] | None


def declared(module: str, path: Path | None = None) -> Iterator[Declared]:
    """The marked classes of a module, and of a package's modules.

    Args:
        path: the module's file, where it is none that can be imported by name.

    Raises:
        ModuleNotFoundError, SyntaxError, UnicodeDecodeError: it is not there, or is not Python.
    """
    for name, file in _modules(module) if path is None else [(module, path)]:
        for node in _tree(file).body:
            if isinstance(node, ast.ClassDef) and (marked := _mark(node)):
                kind = _kind(name, file, node)
                found = _options(name, file, node, GIVEN.get(kind or "", set()))
                doc = inspect.cleandoc(ast.get_docstring(node) or "")
                yield Declared(marked, name, node.name, file, _api(name, file), doc, kind, found)


def source_of(module: str) -> Path | None:
    """The file of a module, without importing it or the packages around it."""
    spec = _spec(module)
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _spec(module: str) -> importlib.machinery.ModuleSpec | None:
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    for name in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        top = f"{top}.{name}"
        spec = importlib.machinery.PathFinder.find_spec(top, list(spec.submodule_search_locations))
    return spec


def _modules(module: str) -> Iterator[tuple[str, Path]]:
    spec = _spec(module)
    if spec is None:
        raise ModuleNotFoundError(f"no module {module!r}")
    if spec.submodule_search_locations is None:
        if spec.origin and spec.origin.endswith(".py"):
            yield module, Path(spec.origin)
        return
    for folder in spec.submodule_search_locations:
        for path in sorted(Path(folder).glob("*.py")):
            yield (module if path.stem == "__init__" else f"{module}.{path.stem}"), path


def _tree(path: Path) -> ast.Module:
    return _parsed(path, path.stat().st_mtime_ns)


@cache
def _parsed(path: Path, changed: int) -> ast.Module:
    with warnings.catch_warnings(action="ignore", category=SyntaxWarning):  # its author's affair
        return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _mark(node: ast.ClassDef) -> str | None:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and _last_name(decorator.func) == "plugin" and decorator.args:
            first = decorator.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                return first.value
    return None


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Subscript):  # Generic[...]
        return _last_name(node.value)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _api(module: str, path: Path) -> tuple[int, int]:
    """What a module says that it was built for, or else the packages around it."""
    files: list[Path | None] = [path]
    while "." in module:
        module = module.rpartition(".")[0]
        files.append(source_of(module))
    for file in filter(None, files):
        for node in _tree(file).body:
            if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
                continue
            if API in map(_last_name, node.targets if isinstance(node, ast.Assign) else [node.target]):
                return _version(node.value, file)
    return FIRST_API


def _version(value: ast.expr, path: Path) -> tuple[int, int]:
    parts = value.elts if isinstance(value, ast.Tuple) else [value]
    numbers = [part.value for part in parts if isinstance(part, ast.Constant) and type(part.value) is int]
    if len(numbers) != len(parts) or len(numbers) not in (1, 2):
        raise ValueError(f"{API} in {path} is {ast.unparse(value)}; expected a number such as 1, or (1, 0)")
    return numbers[0], numbers[1] if len(numbers) == 2 else 0


Place = tuple[str, Path]  # a module's name and file


def _kind(module: str, path: Path, node: ast.ClassDef) -> str | None:
    """The kind, by the contract that it derives from, if need be by way of other classes of its package."""
    for base in node.bases:
        if kind := KINDS.get(_last_name(base)):
            return kind
        if (found := _class((module, path), base)) and (kind := _kind(*found)):
            return kind
    return None


def _class(place: Place, base: ast.expr) -> tuple[str, Path, ast.ClassDef] | None:
    if isinstance(base, ast.Name) and (found := _defined(place, base.id)) and isinstance(found[1], ast.ClassDef):
        return *found[0], found[1]
    return None


def _defined(place: Place, name: str) -> tuple[Place, ast.stmt] | None:
    """The class or assignment that a name means in a module: there, or imported from beside it in its package."""
    module, path = place
    for node in _tree(path).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if (isinstance(node, ast.ClassDef) and node.name == name) or name in map(_last_name, targets):
            return place, node
        for alias in node.names if isinstance(node, ast.ImportFrom) else []:
            if (alias.asname or alias.name) != name:
                continue
            assert isinstance(node, ast.ImportFrom)
            home = node.module or ""
            if node.level:
                around = module.split(".")[: None if path.stem == "__init__" else -1]
                home = ".".join([*around[: len(around) + 1 - node.level], *filter(None, [home])])
            file = source_of(home) if home.partition(".")[0] == module.partition(".")[0] else None
            return _defined((home, file), alias.name) if file else None
    return None


def _options(module: str, path: Path, node: ast.ClassDef, given: set[str]) -> tuple[Option, ...] | None:
    """The arguments of the class's ``__init__``, its own or inherited; None if the source does not tell."""
    docs = [ast.get_docstring(node) or ""]
    while True:
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                return tuple(_of_function((module, path), item, given, [*docs, ast.get_docstring(item) or ""]))
        if any(_last_name(d.func if isinstance(d, ast.Call) else d) == "dataclass" for d in node.decorator_list):
            fields = [
                item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            ]
            plain = all("ClassVar" not in ast.unparse(f.annotation) for f in fields)
            return tuple(_field((module, path), f, docs) for f in fields) if plain and len(node.bases) == 1 else None
        others = [base for base in node.bases if _last_name(base) not in INITLESS]
        if not others:
            return ()
        found = _class((module, path), others[0])
        if found is None or len(others) > 1:
            return None
        module, path, node = found
        docs.append(ast.get_docstring(node) or "")


def _of_function(place: Place, item: ast.FunctionDef, given: set[str], docs: list[str]) -> Iterator[Option]:
    plain = [*item.args.posonlyargs, *item.args.args][1:]  # without self
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(item.args.defaults)) + list(item.args.defaults)
    pairs = [*zip(plain, defaults, strict=True), *zip(item.args.kwonlyargs, item.args.kw_defaults, strict=True)]
    for argument, default in pairs:
        if argument.arg not in given:
            typed = _typed(place, argument.annotation) if argument.annotation else ""
            yield Option(argument.arg, typed, ast.unparse(default) if default else None, said_of(argument.arg, *docs))


def _typed(place: Place, note: ast.expr) -> str:
    """An annotation as it is written, but a name for a type as that type."""
    found = _defined(place, note.id) if isinstance(note, ast.Name) else None
    if found and isinstance(found[1], ast.Assign):
        return ast.unparse(found[1].value)
    return ast.unparse(note)


def _field(place: Place, item: ast.AnnAssign, docs: list[str]) -> Option:
    name = _last_name(item.target)
    default = ast.unparse(item.value) if item.value else None
    return Option(name, _typed(place, item.annotation), default, said_of(name, *docs))


def of_signature(cls: type, given: set[str]) -> tuple[Option, ...]:
    """The same of an imported class."""
    docs = [inspect.getdoc(c) or "" for c in cls.__mro__ if c.__module__ != "builtins"]
    docs += [inspect.getdoc(vars(c)["__init__"]) or "" for c in cls.__mro__[:-1] if "__init__" in vars(c)]
    found = []
    for name, parameter in inspect.signature(cls).parameters.items():
        if name not in given and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            note = parameter.annotation
            typed = "" if note is parameter.empty else note if isinstance(note, str) else inspect.formatannotation(note)
            default = None if parameter.default is parameter.empty else repr(parameter.default)
            found.append(Option(name, typed, default, said_of(name, *docs)))
    return tuple(found)
