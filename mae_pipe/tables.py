"""The tables of a recipe, such as ``[data]`` and ``[encoder]``: every key with its type and default."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WrapValidator,
    model_validator,
)

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Strength = Annotated[float, Field(ge=0)]
Above0 = Annotated[float, Field(gt=0)]


class Table(BaseModel):
    """Frozen; an unknown key or another type is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Chosen(Table):
    """A plugin by name, with its own options."""

    name: str
    options: dict[str, Any] = {}


def _one_or_two(value: Any, handler: Callable[[Any], Any]) -> Any:
    try:
        return handler(tuple(value) if isinstance(value, list) else value)
    except ValidationError:
        raise ValueError("expected a number of pixels, or [height, width]") from None


Sides = Annotated[Positive | tuple[Positive, Positive], WrapValidator(_one_or_two)]


RANDAUGMENT = re.compile(  # options of timm that are taken; it passes over others without a word
    r"m\d+|n[1-9]\d*|p(?:0(?:\.\d+)?|1(?:\.0+)?)|mstd\d+(?:\.\d+)?|mmax[1-9]\d*|inc[01]"
)


def _timms(value: str) -> str:
    """A name that timm takes as it is meant."""
    first, *options = value.split("-")
    names = [option.rstrip("0123456789.") for option in options if RANDAUGMENT.fullmatch(option)]
    if value and (first != "rand" or len(options) != len(set(names))):
        raise ValueError(
            'expected "rand" and options of timm, each once, such as "rand-m9-mstd0.5-inc1": m magnitude, n how many, '
            "p probability, mstd deviation of the magnitude, mmax its bound, inc1 if more of it is to do more"
        )
    return value


class Data(Table):
    """Which pixels a step sees."""

    size: Sides = 224  # S, pixels; or [height, width]
    crop: Literal["random", "tf", "fixed", "centre", "none"] = "random"  # table 1e; none: centre, never mirrored
    crop_scale: tuple[Share, Share] = (0.2, 1.0)  # random and tf crop: of the image's area
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # random and tf crop: width / height
    crop_share: Annotated[float, Field(gt=0, le=1)] = 0.875  # fixed crop: its side in the resized image's short side
    flip: Share = 0.5  # probability of a horizontal flip
    jitter: tuple[Strength, Strength, Strength, Annotated[float, Field(ge=0, le=0.5)]] = (0.0, 0.0, 0.0, 0.0)
    # ^ brightness, contrast, saturation, hue, as torchvision's ColorJitter; usual is (0.4, 0.4, 0.4, 0.1)
    randaugment: Annotated[str, AfterValidator(_timms)] = ""  # timm's options, such as "rand-m9-mstd0.5-inc1"
    erase: Share = 0.0  # downstream: probability of random erasing, of one box with noise
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bicubic"  # of all crops; antialiased
    centre_share: Annotated[float, Field(gt=0, le=1)] = 0.875  # centre crop: its side in the resized image's short side
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of each channel, in [0, 1]; ImageNet's, as timm
    std: tuple[Above0, ...] = (0.229, 0.224, 0.225)
    order: Literal["auto", "full", "window"] = "auto"  # of the images; auto: full, or window where shards are fetched
    window: Positive = 32768  # order "window": images that are shuffled together, about; whole shards
    lanes: Positive = 1  # order "window": parts of a global batch with shards of their own; a node fetches its parts'
    repeats: Positive = 1  # crops of an image in a row, of one decode; an epoch is as many crops as there are images
    global_batch: Positive = 4096  # images an optimizer step, on any number of ranks
    micro_batch: Positive = 64  # images at once on one rank; the rest is accumulated
    workers: Annotated[int, Field(ge=0)] = 8  # that decode, of each rank
    worker_kind: Literal["thread", "process"] = "thread"  # processes pay where Pillow decodes

    @model_validator(mode="after")
    def _fits(self) -> Data:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1]:
            raise ValueError("crop_scale must be two rising numbers in (0, 1]")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError("crop_ratio must be two rising positive numbers")
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has {len(self.mean)} and std {len(self.std)} numbers, but both need one for each channel"
            )
        if self.crop == "none" and (any(self.jitter) or self.randaugment):
            off = "jitter to zeros" if any(self.jitter) else 'randaugment to ""'
            raise ValueError(f'crop "none" is no augmentation at all; set crop to "centre", or {off}')
        if any(self.jitter) and self.channels not in (1, 3):
            raise ValueError(f"jitter is for colour or grey images, not for {self.channels} channels; set it to zeros")
        if self.randaugment and any(self.jitter):
            raise ValueError("randaugment changes colours too, and timm has no jitter beside it; set jitter to zeros")
        if self.randaugment and self.channels != 3:
            raise ValueError(f'randaugment is for 3 channels, not for {self.channels}; set it to ""')
        if self.randaugment and self.interpolation == "lanczos":
            raise ValueError('randaugment turns and shears images, which Pillow cannot by "lanczos"; set "bicubic"')
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


class EncoderShape(Table):
    """A timm ViT."""

    width: Positive = 768  # D
    depth: Positive = 12
    heads: Positive = 12
    patch: Positive | tuple[Positive, Positive] = 16  # P, pixels; or rows and columns
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    drop_path: Share = 0.0
    dropout: Share = 0.0  # after the positions, and after attention and both layers of every MLP
    class_tokens: Annotated[int, Field(ge=0)] = 1  # T; those after the first are what timm calls register tokens
    mask_tokens: bool = False  # the encoder sees a learned token at hidden patches (table 1c), not only visible ones
    qk_norm: bool = False  # a norm of queries and keys (Dehghani et al. 2023)
    layer_scale: Annotated[float, Field(gt=0)] | None = None  # first scale of every residual (CaiT, BEiT)
    # fixed; trained from noise; a bias of attention that all blocks share, or one of every block's own
    positions: Literal["sincos", "learned", "relative", "relative_per_block"] = "sincos"

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of pixels in a patch."""
        return (self.patch, self.patch) if isinstance(self.patch, int) else self.patch

    @model_validator(mode="after")
    def _divides(self) -> EncoderShape:
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads} and of 4")
        return self


class DecoderShape(Table):
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


def _not_muon(value: Any) -> Any:
    if value == "muon":
        raise ValueError(
            "Muon is not offered: DeepSpeed's clips and rounds by other rules from one ZeRO stage and precision to the "
            'next, and our checkpoints do not hold all of its momentum; set "adamw"'
        )
    return value


OptimizerName = Annotated[Literal["adamw", "fused_adam", "cpu_adam", "lars", "sgd"], BeforeValidator(_not_muon)]


class Mixing(Table):
    """Mixup and CutMix of the images of a micro-batch, one of them in each."""

    mixup: Annotated[float, Field(ge=0)] = 0.0  # alpha: the share is drawn from Beta(alpha, alpha); 0: off
    cutmix: Annotated[float, Field(ge=0)] = 0.0  # the same of CutMix
    probability: Share = 1.0  # of either, for a micro-batch
    switch: Share = 0.5  # of CutMix, where both are on

    @property
    def on(self) -> bool:
        """Whether there is anything to mix."""
        return (self.mixup > 0 or self.cutmix > 0) and self.probability > 0


class Sliding(Table):
    """Maps measured on whole images, by windows of ``data.size`` that slide over them; else on centre views."""

    stride: Sides | None = None  # pixels from window to window; or [down, across]; None: centre views
    short_side: Positive | None = None  # images are resized to it first, their maps never; None: as they are

    @property
    def steps(self) -> tuple[int, int]:
        """Pixels from window to window, down and across; of a stride that is given."""
        if self.stride is None:
            raise ValueError("there is no stride")
        return (self.stride, self.stride) if isinstance(self.stride, int) else self.stride


class Optimizer(Table):
    """AdamW, LARS or SGD; lr = base_lr x global_batch / 256."""

    name: OptimizerName = "adamw"  # PyTorch's; DeepSpeed's AdamW for GPUs; for offloaded state; momentum
    base_lr: Annotated[float, Field(gt=0)] = 1.5e-4
    betas: tuple[Share, Share] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # lars, sgd
    trust: Above0 = 0.001  # lars: norm of a scaled gradient in norms of its tensor
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    weight_decay_end: Annotated[float, Field(ge=0)] | None = None  # half a cosine leads to it; None: it stays
    decay_all: bool = False  # pretraining: biases and norms too (MoCo v3)
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # finetuning: lr factor a layer down
    clip: Annotated[float, Field(ge=0)] = 0.0  # gradient norm; 0: off


class Schedule(Table):
    """Linear warmup from 0, then half a cosine to ``min_lr``, or a straight line; per step."""

    shape: Literal["cosine", "linear"] = "cosine"  # linear: mmseg's "poly" of power 1, falling from step 0 on
    epochs: Annotated[float, Field(gt=0)] = 800.0
    warmup_epochs: Annotated[float, Field(ge=0)] = 40.0
    min_lr: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _fits(self) -> Schedule:
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} is more than epochs {self.epochs}")
        return self


class Saving(Table):
    """When a run writes a checkpoint. The last step always does."""

    every_epochs: Annotated[float, Field(gt=0)] = 20.0
    keep_last: Positive = 2
    keep_every_epochs: Annotated[float, Field(gt=0)] | None = None  # and for ever those of every so many epochs
    background: bool = True  # write a copy while training goes on, where memory has room for it


class FaultChoice(Table):
    """What a run does where something goes wrong in it."""

    nonfinite: Literal["skip", "rollback", "stop"] = "skip"  # where a step's loss or gradient is not finite
    budget: Positive = 5  # skip: with so many steps in a row the run ends; rollback: it goes back so often
    lost_seconds: Above0 = 30.0  # without a sign of life, after which a rank is lost
    hang_minutes: Above0 = 10.0  # in which no rank gets on, after which the job is ended


class Logging(Table):
    """How often a run speaks."""

    every_steps: Positive = 20
    pictures_every_epochs: Annotated[float, Field(gt=0)] = 100.0


class TokenizerShape(Table):
    """A discrete variational autoencoder."""

    kind: Literal["vq", "gumbel"] = "vq"  # nearest code by moving means, or Gumbel-softmax
    codebook: Annotated[int, Field(ge=2)] = 8192  # tokens that there are
    code_width: Positive = 32  # numbers a code
    width: Positive = 64  # channels at full size; up to four times that below
    blocks: Annotated[int, Field(ge=0)] = 2  # residual blocks at each size
    downsampling: Literal[2, 4, 8, 16, 32] = 8  # pixels in a row and in a column that become one token
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.99  # vq: of the moving means, a step
    commitment: Annotated[float, Field(ge=0)] = 0.25  # vq: weight of the loss that keeps maps near their codes
    divergence: Annotated[float, Field(ge=0)] = 1e-3  # gumbel: weight of the KL divergence from an even use
    temperature: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (1.0, 0.0625)  # first, last
