"""What a table wants trained: stems, each one pretraining with its evaluations, shared by all that want the same."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from mae_pipe import recipe as recipes
from mae_pipe.errors import RecipeError
from mae_pipe.recipe import Downstream, Pretrain, Recipe, Tokenizer
from mae_pipe.reproducing.published import MEASURES, At, Measure, Published, Row, Scale

TOKENIZER = "target.options.tokenizer"
PARTS = ("pretrain", "finetune", "probe", "tokenizer")
Extra = Mapping[str, Sequence[str]]  # part -> changes


@dataclass(frozen=True)
class Trained:
    """A tokenizer that stems take their tokens from."""

    recipe: Tokenizer
    data: str

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"tokenizer-{_hash(self.data, _told(self.recipe))}"


@dataclass(frozen=True)
class Evaluation:
    """One measurement of a stem's encoder."""

    recipe: Downstream
    cached: bool = False

    @property
    def name(self) -> str:
        """Of its folder in the stem's."""
        return f"{self.recipe.task}-{_hash(_told(self.recipe), str(self.cached))}"


@dataclass(frozen=True)
class Stem:
    """One pretraining, or an encoder as it begins, with its evaluations.

    Attributes:
        recipe: where there is a ``tokenizer``, its options name it by its name, not yet by its folder.
        data: fingerprint of the images.
        of: name of the recipe, for people.
    """

    recipe: Pretrain
    data: str
    of: str
    scratch: bool = False
    tokenizer: Trained | None = None
    evaluations: tuple[Evaluation, ...] = ()

    @cached_property
    def name(self) -> str:
        """Of its folder: equal for what would compute the same encoder."""
        what = _told(self.recipe)
        if self.scratch:  # of the recipe only the shape counts
            shape = {
                "encoder": self.recipe.encoder.model_dump(mode="json", exclude_defaults=True),
                "seed": self.recipe.seed,
            }
            shape |= {name: getattr(self.recipe.data, name) for name in recipes.INHERITED}
            what = json.dumps(shape, sort_keys=True)
        own = re.sub(r"[^\w-]", "-", self.of)
        return f"{'scratch' if self.scratch else own}-s{self.recipe.seed}-{_hash(self.data, what)}"


@dataclass(frozen=True)
class Cell:
    """Where one number of a table comes from."""

    row: Row
    seed: int
    measure: Measure
    stem: str
    evaluation: str


@dataclass(frozen=True)
class Study:
    """All that a table wants at a scale.

    Attributes:
        stems: by name, each once.
        cells: every number of every seed.
    """

    table: Published
    scale: Scale
    seeds: int
    rows: tuple[Row, ...]
    stems: dict[str, Stem]
    cells: tuple[Cell, ...]

    @property
    def tokenizers(self) -> dict[str, Trained]:
        """By name; before any stem."""
        return {stem.tokenizer.name: stem.tokenizer for stem in self.stems.values() if stem.tokenizer}

    def rows_of(self, stem: str) -> list[str]:
        """The labels of the rows that a stem serves."""
        return list(dict.fromkeys(cell.row.label for cell in self.cells if cell.stem == stem))


def plan(table: Published, scale: Scale, *, seeds: int, data: str, extra: Extra | None = None) -> Study:
    """What ``table`` wants, with seeds 0, 1, ...

    Args:
        data: fingerprint of the images.
        extra: further changes, by part (``PARTS``).

    Raises:
        RecipeError: a recipe is not there, or a change does not fit.
    """
    extra = extra or {}
    rows = table.at(scale.name)
    stems: dict[str, Stem] = {}
    cells = []
    for row in rows:
        for seed in range(seeds if table.measures else 0):
            stem = _stem(row, scale, seed, data, extra)
            known = stems.setdefault(stem.name, stem)
            for measure in measures(row, table, scale):
                evaluation = _evaluation(measure, row, scale, seed, extra)
                if evaluation not in known.evaluations:
                    known = replace(known, evaluations=(*known.evaluations, evaluation))
                cells.append(Cell(row, seed, measure, stem.name, evaluation.name))
            stems[stem.name] = known
    return Study(table, scale, seeds, tuple(rows), stems, tuple(cells))


def at(row: Row, scale: str) -> At:
    """What a row has of its own at a scale."""
    return row.at.get(scale, At())


def measures(row: Row, table: Published, scale: Scale) -> tuple[Measure, ...]:
    """What is measured of a row: all that its table has, or what it says itself."""
    own = at(row, scale.name).measures
    return table.measures if own is None else own


def pretraining(row: Row, scale: Scale) -> tuple[str, tuple[str, ...]]:
    """The recipe of a row, by name, and its changes."""
    own = at(row, scale.name)
    changes = row.changes if own.changes is None else own.changes
    other = own.recipe or row.recipe.get(scale.name)
    if other:
        return other, (*scale.shared, *changes)
    return scale.pretrain.recipe, (*scale.shared, *scale.pretrain.changes, *changes)


def evaluating(measure: Measure, row: Row, scale: Scale) -> tuple[str, tuple[str, ...]]:
    """The recipe that measures a row, by name, and its changes."""
    own = at(row, scale.name)
    if measure == "linear":
        return own.probe or scale.probe.recipe, () if own.probe else scale.probe.changes
    changes = () if own.finetune else scale.finetune.changes
    scratch = scale.scratch.changes if row.scratch else ()
    return own.finetune or scale.finetune.recipe, (*changes, *scratch, *own.finetune_changes)


def _stem(row: Row, scale: Scale, seed: int, data: str, extra: Extra) -> Stem:
    name, changes = pretraining(row, scale)
    trained = None
    if row.tokenizer:
        tokenizer = _load(scale.tokenizer.recipe, (*scale.tokenizer.changes, *extra.get("tokenizer", ())), "tokenizer")
        assert isinstance(tokenizer, Tokenizer)
        trained = Trained(tokenizer, data)
        changes = (*changes, f"{TOKENIZER}={trained.name}")
    chosen = _load(name, (*changes, *extra.get("pretrain", ()), f"seed={seed}"), "pretrain")
    assert isinstance(chosen, Pretrain)
    return Stem(chosen, data, name, row.scratch, trained)


def _evaluation(measure: Measure, row: Row, scale: Scale, seed: int, extra: Extra) -> Evaluation:
    name, changes = evaluating(measure, row, scale)
    task = MEASURES[measure]
    chosen = _load(name, (*changes, *extra.get(task, ()), f"seed={seed}"), task)
    assert isinstance(chosen, Downstream)
    return Evaluation(chosen, scale.probe.cached and measure == "linear")


def _load(name: str, changes: Sequence[str], task: str) -> Recipe:
    return recipes.load(name, changes, task=task)


def extra_of(changes: Sequence[str]) -> dict[str, list[str]]:
    """``pretrain.schedule.epochs=2`` -> {"pretrain": ["schedule.epochs=2"]}.

    Raises:
        RecipeError: one does not begin with a part.
    """
    found: dict[str, list[str]] = {}
    for change in changes:
        part, _, rest = change.partition(".")
        if part not in PARTS or "=" not in rest:
            raise RecipeError(
                f"--set {change!r} does not begin with what it changes ({', '.join(PARTS)}); "
                "write it as pretrain.schedule.epochs=2"
            )
        found.setdefault(part, []).append(rest)
    return found


def _told(recipe: Recipe) -> str:
    """What a recipe says, without defaults: a key that a later version adds makes no run another one.

    Nor does what is only looked at.
    """
    said = recipe.model_dump(mode="json", exclude_defaults=True, exclude={"monitor"})
    return json.dumps(said, sort_keys=True)


def _hash(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:10]
