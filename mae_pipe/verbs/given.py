"""What the functions are given -> what the pipeline works with; and the same work in several processes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from mae_pipe import errors, launch, recipe
from mae_pipe.catalog import Catalog
from mae_pipe.changes import pairs
from mae_pipe.data.address import is_url
from mae_pipe.recipe import Changes, Recipe

Place = str | Path
AnyRecipe = str | Path | Mapping[str, Any] | Recipe
R = TypeVar("R", bound=Recipe)


def recipe_of(given: AnyRecipe, changes: Changes, task: str, kind: type[R]) -> R:
    """A recipe for ``task``, checked.

    Raises:
        RecipeError: there is none of that name, it is for another task, or a value does not fit.
    """
    if isinstance(given, str | Path):
        found: Recipe = recipe.load(str(given), changes, task=task)
    else:
        values = given.model_dump(mode="json", exclude_unset=True) if isinstance(given, Recipe) else given
        own = given.task if isinstance(given, Recipe) else task
        found = recipe.changed(recipe.parse({"task": own, **values}, "that was given", task=task), changes)
    assert isinstance(found, kind)
    return found


def place_of(given: Place) -> Path | str:
    """A path, or a URL as text."""
    return given if isinstance(given, Path) or is_url(given) else Path(given)


def path_of(given: Place | None) -> Path | None:
    """A path, where one is given."""
    return None if given is None else Path(given)


def catalog_of(plugins: Sequence[Place]) -> Catalog:
    """The installed plugins and those of files."""
    return Catalog(tuple(map(Path, plugins)))


def shown(console: Console | None) -> Console:
    """Where progress is shown; nowhere by default."""
    return console or Console(quiet=True)


def several(nproc: int) -> bool:
    """Whether processes are to be started: more than one, and this is none of them."""
    return nproc > 1 and not launch.launched()


def in_processes(
    nproc: int,
    arguments: Iterable[str],
    options: Mapping[str, Any],
    *,
    changes: Changes = (),
    plugins: Sequence[Place] = (),
    chosen: Recipe | None = None,
    recipe_option: Sequence[str] = (),
) -> None:
    """Run the command ``mae-pipe ARGUMENTS`` in ``nproc`` processes; what they say goes to this one's terminal.

    Args:
        options: value by name; None and False are left out, True has no value.
        chosen: a recipe, which the command is given as a file behind ``recipe_option``.

    Raises:
        MaePipeError: of the class whose exit code they ended with.
    """
    from mae_pipe.provenance import as_toml
    from mae_pipe.spawning import Job, spawn

    words = list(arguments)
    texts = [f"{name}={json.dumps(value)}" for name, value in pairs(changes)]
    for name, value in (*options.items(), *(("set", text) for text in texts), *(("plugin", path) for path in plugins)):
        if value is not None and value is not False:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    with tempfile.TemporaryDirectory(prefix="mae-pipe-") as folder:
        if chosen is not None:
            file = Path(folder) / "recipe.toml"
            file.write_text(as_toml(chosen), encoding="utf-8")
            words += [*recipe_option, str(file)]
        code = spawn(Job(nproc), words)
    if code:
        kinds = (kind for kind in vars(errors).values() if isinstance(kind, type))
        kind = next((k for k in kinds if getattr(k, "exit_code", None) == code), errors.MaePipeError)
        raise kind(f"the {nproc} processes of mae-pipe {words[0]} ended with {code}; what was wrong they have said")
