"""Parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from mae_pipe.errors import RecipeError
from mae_pipe.recipe import Recipe

Groups = list[dict[str, Any]]


def no_decay_below_two_dimensions(name: str, parameter: nn.Parameter) -> bool:
    """Pretraining's rule (official code, timm's ``add_weight_decay``): biases and norms; tokens do decay."""
    return parameter.ndim <= 1 or name.endswith(".bias")


def no_decay_finetuning(name: str, parameter: nn.Parameter) -> bool:
    """Finetuning's rule (official ``param_groups_lrd``): 1-D parameters, positions and class tokens."""
    return parameter.ndim == 1 or name.rpartition(".")[2] in ("pos_embed", "cls_token", "reg_token")


def layer_of(name: str, depth: int) -> int:
    """The layer of an encoder parameter: 0 the embeddings, i + 1 block i, depth + 1 what follows."""
    if name in ("cls_token", "reg_token", "pos_embed", "mask_token") or name.startswith("patch_embed."):
        return 0
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    *,
    weight_decay: float,
    no_decay: Callable[[str, nn.Parameter], bool] = no_decay_below_two_dimensions,
    lr_scale: Callable[[str], float] = lambda name: 1.0,
    held_back: Callable[[str], float] = lambda name: 0.0,
) -> Groups:
    """Groups of trainable parameters by (lr scale, weight decay, epochs held back), in the order of first use.

    The trainer sets each group's lr to the schedule's times ``lr_scale``, which is 1 or layer
    decay's ``decay ** (depth + 1 - layer)`` (BEiT, Bao et al. 2022); and to 0 in the first ``held_back`` epochs.
    """
    groups: dict[tuple[float, float, float], dict[str, Any]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            decay = 0.0 if no_decay(name, parameter) else weight_decay
            scale, held = lr_scale(name), held_back(name)
            new = {"params": [], "weight_decay": decay, "lr_scale": scale, "held_back": held}
            groups.setdefault((scale, decay, held), new)["params"].append(parameter)
    return list(groups.values())


@dataclass(frozen=True)
class Plan:
    """How a recipe runs on ``images`` images and ``world`` ranks: batches, steps, learning rates.

    Attributes:
        micro_batch: images of one rank at once.
        accumulation: micro-batches of every rank in one step.
    """

    images: int
    global_batch: int
    micro_batch: int
    accumulation: int
    steps: int
    peak_lr: float
    min_lr: float
    epochs: float
    warmup_epochs: float
    shape: str
    decay: tuple[float, float | None] = (0.0, None)  # weight decay, at the start and at the end

    @classmethod
    def of(cls, recipe: Recipe, images: int, world: int) -> Plan:
        """The plan for one epoch of ``images``; the global batch is kept by accumulation."""
        data, schedule = recipe.data, recipe.schedule
        if data.global_batch % world:
            fits = max(world, data.global_batch // world * world)
            raise RecipeError(
                f"data.global_batch {data.global_batch} does not divide over {world} processes; "
                f"set it to a multiple, such as data.global_batch={fits}"
            )
        share = data.global_batch // world
        most = min(data.micro_batch, share)
        micro = next(m for m in range(most, 0, -1) if share % m == 0)
        if 2 * micro < most:
            raise RecipeError(
                f"data.global_batch {data.global_batch} is {share} images a process, and no number near "
                f"data.micro_batch {data.micro_batch} divides that; set data.micro_batch={micro}, or change the "
                "global batch"
            )
        return cls(
            images=images,
            global_batch=data.global_batch,
            micro_batch=micro,
            accumulation=share // micro,
            steps=recipe.steps(images),
            peak_lr=recipe.lr,
            min_lr=schedule.min_lr,
            epochs=schedule.epochs,
            warmup_epochs=schedule.warmup_epochs,
            shape=schedule.shape,
            decay=(recipe.optimizer.weight_decay, recipe.optimizer.weight_decay_end),
        )

    def epoch(self, step: int) -> float:
        """Epochs that ``step`` steps have seen."""
        return step * self.global_batch / self.images

    def lr(self, step: int) -> float:
        """The learning rate of step number ``step``, counted from 0."""
        rate = learning_rate if self.shape == "cosine" else straight_rate
        return rate(self.epoch(step), self.peak_lr, self.min_lr, epochs=self.epochs, warmup_epochs=self.warmup_epochs)

    def weight_decay(self, step: int) -> float | None:
        """That of step number ``step``; None: as the groups were made."""
        first, last = self.decay
        if last is None:
            return None
        # DINO's ``cosine_scheduler``, Caron et al. 2021: like the learning rate's, and without a warmup.
        return learning_rate(self.epoch(step), first, last, epochs=self.epochs, warmup_epochs=0)

    def steps_of(self, epochs: float) -> int:
        """The steps nearest to so many epochs, at least 1."""
        return max(1, round(epochs * self.images / self.global_batch))


def learning_rate(epoch: float, peak: float, least: float, *, epochs: float, warmup_epochs: float) -> float:
    """Linear from 0 to ``peak``, then half a cosine to ``least`` (official ``lr_sched.py``)."""
    if epoch < warmup_epochs:
        return peak * epoch / warmup_epochs
    share = min(1.0, (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-12))
    return least + (peak - least) * 0.5 * (1.0 + math.cos(math.pi * share))


def straight_rate(epoch: float, peak: float, least: float, *, epochs: float, warmup_epochs: float) -> float:
    """A straight line from ``peak`` at 0 to ``least``; of it, in warmup, a part that rises from 0 (mmseg's "poly")."""
    line = least + (peak - least) * (1.0 - min(1.0, epoch / epochs))
    return line * min(1.0, epoch / warmup_epochs) if warmup_epochs else line
