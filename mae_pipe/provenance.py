"""Where every value of a recipe comes from: the comment at its line of the file, a default, a change, a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mae_pipe import recipe as recipes
from mae_pipe.changes import BAND, within
from mae_pipe.errors import RecipeError
from mae_pipe.recipe import Recipe
from mae_pipe.toml import comments_of, flat, shown, written

IMAGENET = 1_281_167  # training images of ImageNet-1k
DEFAULT, CHANGED, INHERITED = "default of mae-pipe", "--set", "the pretrained run's"
OTHER_LOSSES = "none, as --set leads to other losses"


@dataclass(frozen=True)
class Sourced:
    """A recipe whose values say where they come from.

    Attributes:
        origin: a built-in name, a file, or a run folder.
        sources: dotted key -> source, of every key that has a value.
    """

    origin: str
    recipe: Recipe
    sources: dict[str, str]

    def values(self) -> dict[str, str]:
        """Dotted key -> value as TOML; without what the pretrained run will say."""
        given = flat(self.recipe.model_dump(mode="json"))
        return {key: shown(given[key]) for key, source in self.sources.items() if source != INHERITED}

    def as_toml(self, *, plain: bool = False, images: int | None = None) -> str:
        """All of it as TOML; reading that gives an equal recipe.

        Args:
            plain: without comments.
            images: of an epoch, from which steps are reckoned.
        """
        if plain:
            return as_toml(self.recipe)
        below = {f"data.{key}": f"{key}: {INHERITED}" for key in _inherited(self.recipe)}
        return written(_dumped(self.recipe), self.sources, below | _reckoned(self.recipe, images))


def read(name_or_path: str, changes: Iterable[str] = ()) -> Sourced:
    """A built-in recipe, a TOML file with ``changes``, or the recipe of a run folder."""
    changes = list(changes)
    path = Path(name_or_path)
    record = path / "recipe.json" if path.is_dir() else path
    if record.name == "recipe.json" and record.is_file():
        if changes:
            raise RecipeError(f"{name_or_path} is a run, whose recipe is fixed; leave out --set, or name a recipe")
        chosen = recipes.parse(json.loads(record.read_text(encoding="utf-8")), str(record))
        given = flat(chosen.model_dump(mode="json"))
        return Sourced(name_or_path, chosen, {key: "the run" for key, value in given.items() if value is not None})
    chosen = recipes.load(name_or_path, changes)
    text, origin = recipes.text_of(name_or_path)
    beside = comments_of(text)
    changed = {change.partition("=")[0].strip() for change in changes}
    inherited = {f"data.{key}" for key in _inherited(chosen)}
    before = flat(recipes.load(name_or_path).model_dump(mode="json"))
    sources = {}
    for key, value in flat(chosen.model_dump(mode="json")).items():
        line, comment = beside.get(key, (0, ""))
        if within(key, changed):
            sources[key] = CHANGED
        elif key == BAND and value != before[key]:
            sources[key] = OTHER_LOSSES
        elif line:
            sources[key] = comment or f"{origin}, line {line}"
        elif key in inherited:
            sources[key] = INHERITED
        elif value is not None:
            sources[key] = DEFAULT
    return Sourced(origin, chosen, sources)


def differences(a: Sourced, b: Sourced) -> Iterator[tuple[str, str, str, str, str]]:
    """(key, value and value, source and source) of what differs; "" for a key that one of them has not."""
    first, second = a.values(), b.values()
    for key in {**first, **second}:
        if first.get(key) != second.get(key):
            yield key, first.get(key, ""), second.get(key, ""), a.sources.get(key, ""), b.sources.get(key, "")


def as_toml(chosen: Recipe) -> str:
    """Every value of a recipe as TOML; reading it gives an equal recipe."""
    return written(_dumped(chosen), {}, {})


def _dumped(chosen: Recipe) -> dict[str, object]:
    """Its values; None in place of those that the pretrained run will say, which would no longer do so if written."""
    values = chosen.model_dump(mode="json")
    values["data"] |= dict.fromkeys(_inherited(chosen))
    return values


def _inherited(chosen: Recipe) -> list[str]:
    head = isinstance(chosen, recipes.Downstream)
    return [key for key in recipes.INHERITED if head and key not in chosen.data.model_fields_set]


def _reckoned(chosen: Recipe, images: int | None) -> dict[str, str]:
    """What follows from the values: the peak learning rate, and steps."""
    batch = chosen.data.global_batch
    peak = f"peak learning rate = base_lr x global_batch / 256 = {chosen.lr:.6g} at {batch:,} images a step"
    found = {"optimizer.base_lr": peak}
    if images is None and "ImageNet-1k" in chosen.about:
        images = IMAGENET
    if images:
        each = f"{images / batch:,.1f} steps an epoch of {images:,} images"
        found["schedule.epochs"] = f"{each}, {chosen.steps(images):,} in all"
    return found
