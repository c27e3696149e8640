"""``mae-pipe plugins new``: a package with one plugin that installs, and passes its own test, as it is."""

from __future__ import annotations

import importlib.util
import keyword
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from mae_pipe.api import VERSION
from mae_pipe.catalog import Catalog
from mae_pipe.disk import writing
from mae_pipe.errors import PluginError

WORDS = {
    "mask": "a mask sampler",
    "target": "a reconstruction target",
    "head": "a head",
    "method": "a method of pretraining",
    "shards": "a shard format",
    "source": "a source of images",
}
SUFFIXES = {kind: kind.capitalize() for kind in WORDS}  # of a class
OPTIONS = {  # of the examples, for the README
    "mask": "pull = 2.0",
    "target": "power = 2.0",
    "head": "dropout = 0.1",
    "method": "noise = 0.5",
}


@dataclass(frozen=True)
class Written:
    """A new package."""

    folder: Path
    files: tuple[Path, ...]


def write(kind: str, name: str, folder: Path | None = None, *, catalog: Catalog) -> Written:
    """Write the package ``mae-pipe-NAME`` into ``folder``, by default one of that name here.

    Raises:
        PluginError: there is no such kind, the name cannot be one or is taken, or the folder is not empty.
    """
    if kind not in WORDS:
        raise PluginError(f"there is no contract for the kind {kind!r} to write; choose {', '.join(WORDS)}")
    module = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name) or keyword.iskeyword(module):
        raise PluginError(
            f"{name!r} cannot name a plugin; take lower-case letters and digits with - or _ between, such as my_{kind}"
        )
    if (kind, name) in catalog.entries:
        owner = catalog.entries[kind, name].package
        raise PluginError(f"there is a {kind} plugin {name!r} already, of {owner}; choose another name")
    package = f"mae_pipe_{module}"
    if importlib.util.find_spec(package):
        raise PluginError(f"a package {package} is installed already; choose another name than {name!r}")
    distribution = f"mae-pipe-{name.replace('_', '-')}"
    folder = folder or Path(distribution)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PluginError(f"{folder} is there already and is not an empty folder; choose another with --out")
    cls = "".join(part.capitalize() for part in module.split("_"))
    said = {
        "kind": kind,
        "name": name,
        "module": module,
        "package": package,
        "distribution": distribution,
        "article": WORDS[kind],
        "cls": cls.removesuffix(SUFFIXES[kind]) + SUFFIXES[kind],
        "option": OPTIONS.get(kind, ""),
        "api": str(VERSION[0]),
    }
    files = {
        "setup.cfg": "setup.cfg",
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{package}/__init__.py": "package.py",
        f"{package}/{module}.py": f"{kind}.py",
        f"{package}/py.typed": None,
        f"tests/test_{module}.py": "test.py",
    }
    with writing(folder):
        for path, template in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(_filled(template, said) if template else "", encoding="utf-8")
    return Written(folder, tuple(folder / path for path in files))


def _filled(template: str, said: dict[str, str]) -> str:
    from jinja2 import Environment, StrictUndefined

    # What is written are Python files and the like, and no browser reads them.
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701
    source = resources.files("mae_pipe") / "templates" / "plugin" / f"{template}.j2"
    return environment.from_string(source.read_text("utf-8")).render(said)
