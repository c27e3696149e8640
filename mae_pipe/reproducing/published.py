"""The tables and figures of MAE (He et al. 2022), and the scales at which they can be run: TOML files beside this."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field

from mae_pipe.errors import RecipeError, closest
from mae_pipe.tables import Positive, Table

Measure = Literal["finetuned", "linear"]
MEASURES: Mapping[Measure, str] = {
    "finetuned": "finetune",
    "linear": "probe",
}  # what is given -> the task that measures it


class Clock(Table):
    """A row whose speed is measured: the recipe at full size, and the paper's hours, or its relative FLOPs."""

    recipe: str
    changes: tuple[str, ...] = ()
    hours: float | None = None
    flops: float | None = None


class At(Table):
    """What is different in a row at one scale; None: as in the row, in the scale, or in the table."""

    recipe: str | None = None
    changes: tuple[str, ...] | None = None
    finetune: str | None = None
    finetune_changes: tuple[str, ...] = ()
    probe: str | None = None
    measures: tuple[Measure, ...] | None = None
    stands: str = ""  # what stands for the paper's row
    x: float | None = None


class Row(Table):
    """One row of a table, or one point of a curve.

    Attributes:
        x, series: where it is in a figure; the clock compares rows of one series.
        finetuned, linear: the paper's top-1 in percent.
        recipe: scale -> pretraining recipe; default: the scale's own.
        changes: of the pretraining recipe.
        scales: where it can be run; empty: everywhere.
        scratch: the encoder is not pretrained.
        tokenizer: the recipe takes its tokens from the scale's tokenizer, which is trained first.
    """

    label: str
    x: float | None = None
    series: str = ""
    finetuned: float | None = None
    linear: float | None = None
    recipe: Mapping[str, str] = Field(default_factory=dict)
    changes: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()
    scratch: bool = False
    tokenizer: bool = False
    clock: Clock | None = None
    at: Mapping[str, At] = Field(default_factory=dict)

    def paper(self, measure: str) -> float | None:
        """The paper's number in percent."""
        value: float | None = getattr(self, measure)
        return value


class Published(Table):
    """A table or a figure of the paper.

    Attributes:
        where: its name in the paper.
        claim: what it says, in a sentence.
        measures: of ``MEASURES``; empty where only the clock is read.
        x_label: of a figure; empty: it is a table.
        notes: scale -> what else differs there.
    """

    name: str
    title: str
    where: str
    claim: str
    measures: tuple[Measure, ...]
    x_label: str = ""
    x_scale: Literal["linear", "log"] = "linear"
    notes: Mapping[str, str] = Field(default_factory=dict)
    rows: tuple[Row, ...]

    def at(self, scale: str) -> list[Row]:
        """The rows that can be run at a scale."""
        return [row for row in self.rows if not row.scales or scale in row.scales]

    @property
    def clocked(self) -> bool:
        """Whether steps are timed."""
        return any(row.clock for row in self.rows)


class Part(Table):
    """A recipe of a scale, with its changes."""

    recipe: str
    changes: tuple[str, ...] = ()
    cached: bool = False  # a probe on features


class Scratch(Table):
    """What training from scratch changes in finetuning."""

    changes: tuple[str, ...] = ()


class Scale(Table):
    """How large the runs are.

    Attributes:
        images: of the training split, where it cannot be counted yet.
        bundled: images that come with the package, so that no shards need to be given.
        differs: what is not as in the paper, in words.
        shared: changes of every pretraining, whatever its recipe.
    """

    name: str
    about: str
    images: Positive
    bundled: Literal["digits"] | None = None
    differs: tuple[str, ...]
    shared: tuple[str, ...] = ()
    pretrain: Part
    finetune: Part
    scratch: Scratch = Scratch()
    probe: Part
    tokenizer: Part


T = TypeVar("T", bound=BaseModel)


def tables() -> list[str]:
    """Their names, as they come in the paper."""
    return sorted(_files("tables"), key=lambda name: (name.startswith("fig"), name))


def scales() -> list[str]:
    """Their names, the smallest first."""
    return sorted(_files("scales"), key=lambda name: scale(name).images)


def table(name: str) -> Published:
    """By name, such as "1f" or "fig5".

    Raises:
        RecipeError: there is none of that name.
    """
    return _read("tables", name, Published)


def scale(name: str) -> Scale:
    """By name: "paper", "imagenette" or "digits"."""
    return _read("scales", name, Scale)


def _files(folder: str) -> dict[str, Any]:
    found = resources.files("mae_pipe.reproducing") / folder
    return {file.name.removesuffix(".toml"): file for file in found.iterdir() if file.name.endswith(".toml")}


def _read(folder: str, name: str, kind: type[T]) -> T:
    files = _files(folder)
    if name not in files:
        known = ", ".join(sorted(files))
        raise RecipeError(f"there is no {folder[:-1]} {name!r}{closest(name, files)}; known are {known}")
    values = tomllib.loads(files[name].read_text(encoding="utf-8"))
    return kind.model_validate_json(json.dumps({"name": name, **values}))
