"""Recipes: TOML files, complete in themselves, read into frozen and typed objects.

An unknown key is refused with the closest known one; every default stands here, once.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator, model_validator
from pydantic_core import PydanticCustomError

from mae_pipe.errors import RecipeError, closest

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Strength = Annotated[float, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Chosen(_Part):
    """A plugin by name, with its own options."""

    name: str
    options: dict[str, Any] = {}


def _one_or_two(value: Any, handler: Callable[[Any], Any]) -> Any:
    try:
        return handler(tuple(value) if isinstance(value, list) else value)
    except ValidationError:
        raise PydanticCustomError("sides", "expected a number of pixels, or [height, width]") from None


Sides = Annotated[Positive | tuple[Positive, Positive], WrapValidator(_one_or_two)]


class Data(_Part):
    """Which pixels a step sees."""

    size: Sides = 224  # S, pixels; or [height, width]
    crop: Literal["random", "fixed", "centre", "none"] = "random"  # table 1e; none: centre, never mirrored
    crop_scale: tuple[Share, Share] = (0.2, 1.0)  # random crop: of the image's area
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # random crop: width / height
    crop_share: Annotated[float, Field(gt=0, le=1)] = 0.875  # fixed crop: its side in the resized image's short side
    flip: Share = 0.5  # probability of a horizontal flip
    jitter: tuple[Strength, Strength, Strength, Annotated[float, Field(ge=0, le=0.5)]] = (0.0, 0.0, 0.0, 0.0)
    # ^ brightness, contrast, saturation, hue, as torchvision's ColorJitter; usual is (0.4, 0.4, 0.4, 0.1)
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bicubic"  # of all crops; antialiased
    centre_share: Annotated[float, Field(gt=0, le=1)] = 0.875  # centre crop: its side in the resized image's short side
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of each channel, in [0, 1]; ImageNet's, as timm
    std: tuple[Annotated[float, Field(gt=0)], ...] = (0.229, 0.224, 0.225)
    global_batch: Positive = 4096  # images an optimizer step, on any number of ranks
    micro_batch: Positive = 64  # images at once on one rank; the rest is accumulated
    workers: Annotated[int, Field(ge=0)] = 8  # decoding threads a rank

    @model_validator(mode="after")
    def _fits(self) -> Data:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1]:
            raise ValueError("crop_scale must be two rising numbers in (0, 1]")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError("crop_ratio must be two rising positive numbers")
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has {len(self.mean)} numbers and std {len(self.std)}; both need one for each channel"
            )
        if any(self.jitter) and self.crop == "none":
            raise ValueError('crop "none" is no augmentation at all; set crop to "centre", or jitter to zeros')
        if any(self.jitter) and self.channels not in (1, 3):
            raise ValueError(f"jitter is for colour or grey images, not for {self.channels} channels; set it to zeros")
        return self

    @property
    def sides(self) -> tuple[int, int]:
        """H and W, pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def height(self) -> int:
        """H, pixels."""
        return self.sides[0]

    @property
    def width(self) -> int:
        """W, pixels."""
        return self.sides[1]

    @property
    def channels(self) -> int:
        """C: one for each number of ``mean``."""
        return len(self.mean)


class EncoderShape(_Part):
    """A timm ViT."""

    width: Positive = 768  # D
    depth: Positive = 12
    heads: Positive = 12
    patch: Positive | tuple[Positive, Positive] = 16  # P, pixels; or rows and columns
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    drop_path: Share = 0.0
    class_tokens: Annotated[int, Field(ge=0)] = 1  # T; those after the first are what timm calls register tokens
    mask_tokens: bool = False  # the encoder sees a learned token at hidden patches (table 1c), not only visible ones
    qk_norm: bool = False  # a norm of queries and keys (Dehghani et al. 2023)
    layer_scale: Annotated[float, Field(gt=0)] | None = None  # first scale of every residual (CaiT, BEiT)

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of pixels in a patch."""
        return (self.patch, self.patch) if isinstance(self.patch, int) else self.patch

    @model_validator(mode="after")
    def _divides(self) -> EncoderShape:
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads} and of 4")
        return self


class DecoderShape(_Part):
    """The blocks that predict hidden patches."""

    width: Positive = 512
    depth: Annotated[int, Field(ge=0)] = 8
    heads: Positive = 16
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0

    @model_validator(mode="after")
    def _divides(self) -> DecoderShape:
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads} and of 4")
        return self


class MaskChoice(Chosen):
    """The mask sampler and the share of patches that it hides."""

    name: str = "random"
    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.75


class TargetChoice(Chosen):
    """What is predicted, and at which patches."""

    name: str = "normalized_pixel"
    loss_on: Literal["hidden", "all"] = "hidden"


class Optimizer(_Part):
    """AdamW; lr = base_lr x global_batch / 256."""

    base_lr: Annotated[float, Field(gt=0)] = 1.5e-4
    betas: tuple[Share, Share] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # finetuning: lr factor a layer down
    clip: Annotated[float, Field(ge=0)] = 0.0  # gradient norm; 0: off


class Schedule(_Part):
    """Linear warmup from 0, then half a cosine to ``min_lr``; per step."""

    epochs: Annotated[float, Field(gt=0)] = 800.0
    warmup_epochs: Annotated[float, Field(ge=0)] = 40.0
    min_lr: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _fits(self) -> Schedule:
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} is more than epochs {self.epochs}")
        return self


class EngineChoice(_Part):
    """How DeepSpeed runs the step."""

    zero: Literal[1, 2, 3] = 1  # ZeRO stage
    precision: Literal["fp32", "bf16"] = "bf16"  # bf16 keeps fp32 master weights and sums
    persistence_threshold: Annotated[int, Field(ge=0)] | None = None  # ZeRO 3: smaller parameters stay whole


class Saving(_Part):
    """When a run writes a checkpoint. The last step always does."""

    every_epochs: Annotated[float, Field(gt=0)] = 20.0
    keep_last: Positive = 2


class Logging(_Part):
    """How often a run speaks."""

    every_steps: Positive = 20
    pictures_every_epochs: Annotated[float, Field(gt=0)] = 100.0


class Recipe(_Part):
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

    @property
    def lr(self) -> float:
        """The peak learning rate: base_lr x global batch / 256 (Goyal et al. 2017)."""
        return self.optimizer.base_lr * self.data.global_batch / 256

    def fingerprint(self) -> str:
        """A hash of every value: two runs with the same one compute the same thing."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]


class Pretrain(Recipe):
    """Masked autoencoding (MAE, He et al. 2022)."""

    task: Literal["pretrain"] = "pretrain"
    encoder: EncoderShape = EncoderShape()
    decoder: DecoderShape = DecoderShape()
    mask: MaskChoice = MaskChoice()
    target: TargetChoice = TargetChoice()

    @model_validator(mode="after")
    def _divides(self) -> Pretrain:
        if any(side % patch for side, patch in zip(self.data.sides, self.encoder.sides, strict=True)):
            raise ValueError(f"data.size {self.data.size} must be a multiple of encoder.patch {self.encoder.patch}")
        return self


class Downstream(Recipe):
    """A head on a pretrained encoder: linear probing trains the head, finetuning everything."""

    task: Literal["probe", "finetune"]
    head: Chosen = Chosen(name="linear")
    drop_path: Share = 0.0
    label_smoothing: Share = 0.0
    labels_per_class: Positive | None = None  # train on few labels; the seed chooses them
    train_split: str = "train"
    eval_split: str = "val"
    eval_every_epochs: Annotated[float, Field(gt=0)] = 10.0  # and always at the end


TASKS: dict[str, type[Recipe]] = {"pretrain": Pretrain, "probe": Downstream, "finetune": Downstream}
R = TypeVar("R", bound=Recipe)


def names() -> list[str]:
    """The built-in recipes."""
    folder = resources.files("mae_pipe") / "recipes"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def load(name_or_path: str, changes: Iterable[str] = (), *, task: str | None = None) -> Recipe:
    """A built-in recipe by name, or a TOML file; then ``changes`` such as ``data.global_batch=512``."""
    text, origin = _text(name_or_path)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"the recipe {origin} is not valid TOML: {error}") from error
    for change in changes:
        _set(values, change)
    return parse(values, origin, task=task)


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


def _text(name_or_path: str) -> tuple[str, str]:
    path = Path(name_or_path)
    if path.suffix == ".toml" or (path.exists() and name_or_path not in names()):  # a folder may be called "digits"
        if not path.is_file():
            raise RecipeError(f"there is no recipe file {path}; built-in recipes are {', '.join(names())}")
        return path.read_text(encoding="utf-8"), str(path)
    if name_or_path not in names():
        raise RecipeError(
            f"there is no recipe {name_or_path!r}{closest(name_or_path, names())}; "
            f"built-in are {', '.join(names())}, or give the path of a .toml file"
        )
    return (resources.files("mae_pipe") / "recipes" / f"{name_or_path}.toml").read_text("utf-8"), name_or_path


def _set(values: dict[str, Any], change: str) -> None:
    """Apply ``a.b=c``; c is TOML, or else a plain string."""
    name, separator, text = change.partition("=")
    if not separator or not name.strip():
        raise RecipeError(f"--set {change!r} is not of the form key=value, such as data.global_batch=512")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *tables, last = name.strip().split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise RecipeError(f"--set {change!r}: {table!r} is a value, not a table")
    values[last] = value


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
