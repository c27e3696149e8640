"""Recipes: TOML files, complete in themselves, read into frozen and typed objects.

An unknown key is refused with the closest known one; every default of a table stands in ``tables.py``, once.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from mae_pipe.changes import Changes, apply
from mae_pipe.engine_tables import EngineChoice
from mae_pipe.errors import RecipeError, closest
from mae_pipe.monitoring.table import Monitor
from mae_pipe.tables import (
    Chosen,
    Data,
    DecoderShape,
    EncoderShape,
    FaultChoice,
    Logging,
    MaskChoice,
    Mixing,
    Optimizer,
    Positive,
    Saving,
    Schedule,
    Share,
    Sliding,
    Table,
    TargetChoice,
    TokenizerShape,
)

__all__ = [
    "INHERITED",
    "TASKS",
    "Changes",
    "Chosen",
    "Data",
    "DecoderShape",
    "Downstream",
    "EncoderShape",
    "EngineChoice",
    "FaultChoice",
    "Logging",
    "MaskChoice",
    "Mixing",
    "Monitor",
    "Optimizer",
    "Pretrain",
    "Recipe",
    "Saving",
    "Schedule",
    "Sliding",
    "Table",
    "TargetChoice",
    "Tokenizer",
    "TokenizerShape",
    "changed",
    "families",
    "heading",
    "load",
    "names",
    "parse",
    "text_of",
]

Average = Annotated[float, Field(ge=0, lt=1)]
INHERITED = ("size", "mean", "std", "centre_share")  # of [data]: the pretrained run's, where a head's recipe is silent


class Recipe(Table):
    """What every task has."""

    task: str
    about: str = ""  # one line: source, expected result
    seed: int = 0
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    engine: EngineChoice = EngineChoice()
    saving: Saving = Saving()
    logging: Logging = Logging()
    faults: FaultChoice = FaultChoice()

    @model_validator(mode="after")
    def _suits_the_engine(self) -> Recipe:
        name, place = self.optimizer.name, self.engine.offload_optimizer
        if name in ("lars", "sgd") and place == "nvme":
            raise ValueError(
                f'optimizer.name "{name}" is for engine.offload_optimizer "none" or "cpu"; set one of them'
            )
        if (name == "cpu_adam") != (place != "none") and name in ("cpu_adam", "fused_adam"):
            raise ValueError(
                'optimizer.name "cpu_adam" is for engine.offload_optimizer "cpu" or "nvme", "fused_adam" for "none", '
                'and "adamw" for all of them'
            )
        if self.engine.sharded_construction and self.task != "pretrain":
            raise ValueError("engine.sharded_construction is for pretraining; leave it out")
        if self.data.erase and self.task not in ("probe", "finetune"):
            raise ValueError("data.erase is for probe and finetune; leave it out")
        return self

    @property
    def lr(self) -> float:
        """The peak learning rate: base_lr x global batch / 256 (Goyal et al. 2017)."""
        return self.optimizer.base_lr * self.data.global_batch / 256

    def steps(self, images: int) -> int:
        """Optimizer steps of all epochs of so many images."""
        return max(1, math.floor(self.schedule.epochs * images / self.data.global_batch + 1e-9))

    def fingerprint(self) -> str:
        """A hash of every value: two runs with the same one compute the same thing."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]


R = TypeVar("R", bound=Recipe)


def _without_drives(chosen: R, ema: float) -> R:
    """Refuse an average of weights that lie on drives."""
    if ema and chosen.engine.offload_optimizer == "nvme":
        raise ValueError('ema is for engine.offload_optimizer "none" or "cpu"; set one of them')
    return chosen


class Pretrain(Recipe):
    """An encoder by one method: masked autoencoding (MAE, He et al. 2022) unless another is named."""

    task: Literal["pretrain"] = "pretrain"
    method: Chosen = Chosen(name="mae")
    ema: Average = 0.0  # decay of an average of the weights, which becomes encoder.safetensors; 0: off
    encoder: EncoderShape = EncoderShape()
    decoder: DecoderShape = DecoderShape()
    mask: MaskChoice = MaskChoice()
    target: TargetChoice = TargetChoice()
    monitor: Monitor = Monitor()

    @model_validator(mode="after")
    def _divides(self) -> Pretrain:
        if any(side % patch for side, patch in zip(self.data.sides, self.encoder.sides, strict=True)):
            raise ValueError(f"data.size {self.data.size} must be a multiple of encoder.patch {self.encoder.patch}")
        return _without_drives(self, self.ema)


class Downstream(Recipe):
    """A head on a pretrained encoder: linear probing trains the head, finetuning everything."""

    task: Literal["probe", "finetune"]
    head: Chosen = Chosen(name="linear")
    drop_path: Share = 0.0
    dropout: Share = 0.0  # after the positions, and after attention and both layers of every MLP
    label_smoothing: Share = 0.0
    tune_blocks: Annotated[float, Field(ge=0)] | None = (
        None  # finetuning: only so many last blocks; 0.5: an MLP; or all
    )
    bias_per_block: bool = False  # finetuning: each block begins with a copy of a bias that all share (BEiT)
    ema: Average = 0.0  # decay of an average of the weights, which is measured; 0: off
    mixing: Mixing = Mixing()
    sliding: Sliding = Sliding()
    labels_per_class: Positive | None = None  # train on few labels; the seed chooses them
    train_split: str = "train"
    eval_split: str = "val"
    eval_every_epochs: Annotated[float, Field(gt=0)] = 10.0  # and always at the end

    @model_validator(mode="after")
    def _suits_the_task(self) -> Downstream:
        if self.task == "probe" and self.dropout:
            raise ValueError("dropout is for finetuning, as a probe's encoder stays as it is; leave it out")
        if self.task == "probe" and self.bias_per_block:
            raise ValueError("bias_per_block is for finetuning, as a probe's encoder stays as it is; leave it out")
        if self.tune_blocks is not None and self.task == "probe":
            raise ValueError("tune_blocks is for finetuning, as a probe trains no block; leave it out")
        if self.tune_blocks is not None and self.tune_blocks != 0.5 and self.tune_blocks % 1:
            raise ValueError(
                f"tune_blocks is 0.5 (the MLP of the last block) or a whole number of blocks, not {self.tune_blocks}"
            )
        if self.sliding.stride is None and self.sliding.short_side is not None:
            raise ValueError("sliding.short_side is for sliding windows; set sliding.stride too, or leave it out")
        return _without_drives(self, self.ema)


class Tokenizer(Recipe):
    """A discrete autoencoder whose tokens are reconstruction targets."""

    task: Literal["tokenizer"] = "tokenizer"
    tokenizer: TokenizerShape = TokenizerShape()
    eval_split: str = "val"

    @model_validator(mode="after")
    def _divides(self) -> Tokenizer:
        if any(side % self.tokenizer.downsampling for side in self.data.sides):
            raise ValueError(
                f"data.size {self.data.size} must be a multiple of tokenizer.downsampling {self.tokenizer.downsampling}"
            )
        return self


TASKS: dict[str, type[Recipe]] = {
    "pretrain": Pretrain,
    "probe": Downstream,
    "finetune": Downstream,
    "tokenizer": Tokenizer,
}


def families() -> dict[str, list[str]]:
    """The built-in recipes, by the folder that their files are in."""
    found: dict[str, list[str]] = {}
    for name, file in _files().items():
        found.setdefault(file.parent.name, []).append(name)
    return found


def names() -> list[str]:
    """The built-in recipes."""
    return sorted(_files())


def _files() -> dict[str, Path]:
    """Name -> file. The package is always unpacked, as it holds a library in C."""
    with resources.as_file(resources.files("mae_pipe") / "recipes") as folder:
        return {file.stem: file for file in sorted(folder.rglob("*.toml"))}


def load(name_or_path: str, changes: Changes = (), *, task: str | None = None) -> Recipe:
    """A built-in recipe by name, or a TOML file; then ``changes`` such as ``data.global_batch=512``.

    Where a change names another plugin, the options of the old one are left behind.
    """
    text, origin = text_of(name_or_path)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"the recipe {origin} is not valid TOML: {error}") from error
    apply(values, changes)
    return parse(values, origin, task=task)


def changed(chosen: R, changes: Changes) -> R:
    """The recipe with ``changes``; what it left to its defaults stays so."""
    values = chosen.model_dump(mode="json", exclude_unset=True)
    apply(values, changes)
    found = parse(values, f"for {chosen.task!r}", task=chosen.task)
    assert isinstance(found, type(chosen))
    return found


def parse(values: dict[str, Any], origin: str, *, task: str | None = None) -> Recipe:
    """Check a recipe's values; ``origin`` names it in errors."""
    kind = values.get("task", task)
    if kind not in TASKS:
        raise RecipeError(f"the recipe {origin} has task = {kind!r}; expected one of {', '.join(TASKS)}")
    if task is not None and kind != task:
        raise RecipeError(f"the recipe {origin} is for {kind!r}, not for {task!r}; give a {task} recipe")
    model = TASKS[kind]
    try:
        return model.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise RecipeError(f"the recipe {origin}: {_say(error, model)}") from error


def heading(name: str) -> tuple[str, str]:
    """Task and ``about`` of a built-in recipe, which stand before its tables: read at once, without a check."""
    values = tomllib.loads(_files()[name].read_text(encoding="utf-8").partition("\n[")[0])
    return values["task"], values["about"]


def text_of(name_or_path: str) -> tuple[str, str]:
    """The file of a built-in recipe or at a path, as it is; and what errors call it."""
    path = Path(name_or_path)
    if path.suffix == ".toml" or (path.exists() and name_or_path not in names()):  # a folder may be called "digits"
        if not path.is_file():
            raise RecipeError(f"there is no recipe file {path}; mae-pipe recipes lists those that are built in")
        return path.read_text(encoding="utf-8"), str(path)
    if name_or_path not in names():
        raise RecipeError(
            f"there is no recipe {name_or_path!r}{closest(name_or_path, names())}; "
            "mae-pipe recipes lists those that are built in, or give the path of a .toml file"
        )
    return _files()[name_or_path].read_text(encoding="utf-8"), name_or_path


def _say(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing wrong, in one clause."""
    first = error.errors()[0]
    where = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        known = _fields(model, where[:-1])
        return f"unknown key {'.'.join(where)!r}{closest(where[-1], known)}; known there are {', '.join(known)}"
    message = first["msg"].removeprefix("Value error, ")
    more = f" (and {len(error.errors()) - 1} more)" if len(error.errors()) > 1 else ""
    return f"{'.'.join(where) or 'the whole'}: {message}, got {_short(first['input'])}{more}"


def _fields(model: type[BaseModel], where: list[str]) -> list[str]:
    for part in where:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
