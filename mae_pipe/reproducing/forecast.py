"""What a study takes: hours from counted arithmetic, and bytes from counted parameters.

Where a method's output is as wide as a tokenizer says, which is not there yet, pixels stand for it in masked
autoencoders; another method then counts as three times its encoder on the whole image.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from mae_pipe.autoencoder import build_encoder
from mae_pipe.catalog import Catalog
from mae_pipe.costs import Costs, costs
from mae_pipe.recipe import Pretrain, changed
from mae_pipe.reproducing.folder import Reproduction
from mae_pipe.reproducing.stems import Evaluation, Stem, Trained

UTILIZATION = 0.4  # share of a GPU's peak that a run reaches
ON_A_PROCESSOR = 0.35  # share of its own matrix products' speed
BEGIN = 12.0  # seconds on a processor until a run's first step, and after its last
CHECKPOINT = 14  # bytes a parameter, one more being written (docs/checkpoints.md)


class Forecast:
    """Seconds and bytes of stems.

    Args:
        tflops: peak of one GPU; at small scales this machine's processor is measured instead.
        at_once: processes at a time; they share a processor's arithmetic, and begin side by side.
    """

    def __init__(self, here: Reproduction, catalog: Catalog, *, tflops: float, at_once: int = 1) -> None:
        self.here, self.catalog, self.at_once = here, catalog, at_once
        self.gpu = here.scale.name == "paper"
        self.speed = tflops * 1e12 * UTILIZATION if self.gpu else products() * ON_A_PROCESSOR

    def seconds(self, one: Stem | Trained) -> float:
        """Of one GPU, or of this machine with nothing beside it."""
        return self.flops(one) / self.speed + self._begins(one)

    def _begins(self, one: Stem | Trained) -> float:
        """Seconds of ``seconds`` in which little is computed."""
        pieces = 1 if isinstance(one, Trained) else len(one.evaluations) + (not one.scratch)
        return 0 if self.gpu else BEGIN * pieces

    def flops(self, one: Stem | Trained) -> float:
        """Of a stem with its evaluations; those of convolutions in a tokenizer are not counted."""
        if isinstance(one, Trained):
            return 0.0
        encoder = _forward(one.recipe)
        total = 0.0
        if not one.scratch:
            seen = self.images * one.recipe.schedule.epochs
            total += seen * _pretraining(one.recipe, self.catalog)
        return total + sum(self._evaluation(evaluation, encoder) for evaluation in one.evaluations)

    @property
    def images(self) -> int:
        """In an epoch."""
        return self.here.images

    def _evaluation(self, evaluation: Evaluation, encoder: float) -> float:
        recipe = evaluation.recipe
        few = recipe.labels_per_class  # of ten classes, as all small scales have
        images = self.images if few is None else 10 * few
        seen = images * (1 if evaluation.cached else recipe.schedule.epochs)
        measured = self.images / 5  # about so many are held out
        return encoder * (seen * (3 if recipe.task == "finetune" else 1) + measured)

    def disk(self, one: Stem | Trained) -> tuple[int, int]:
        """Bytes that stay, and those beside while it is made."""
        if isinstance(one, Trained):
            return 0, 0
        recipe = one.recipe
        encoder, all_of_it = _parameters(recipe, self.catalog)
        features = round(1.3 * self.images) * recipe.encoder.width
        stay = 0 if one.scratch else encoder + all_of_it
        stay += sum(encoder + features * evaluation.cached for evaluation in one.evaluations)
        return 4 * stay, CHECKPOINT * (recipe.saving.keep_last + 1) * all_of_it

    def words(self, one: Stem | Trained) -> str:
        """For people."""
        if isinstance(one, Trained):
            return "a tokenizer, not reckoned"
        names = ", ".join(dict.fromkeys(e.recipe.task for e in one.evaluations))
        begin = "from scratch" if one.scratch else "pretrain"
        return f"{begin}, {names}; about {_time(self.seconds(one), gpu=self.gpu)}"

    def total(self, todo: Sequence[Stem | Trained]) -> str:
        """Of all that is left."""
        if not todo:
            return "nothing is left to run"
        jobs = min(self.at_once, len(todo))
        seconds = sum(self.flops(one) / self.speed + self._begins(one) / jobs for one in todo)
        disks = [self.disk(one) for one in todo]
        stay, beside = sum(stay for stay, _ in disks), sum(sorted(beside for _, beside in disks)[-jobs:])
        rule = (
            f"{self.speed / 1e12:,.0f} TFLOPS a GPU: {UTILIZATION:.0%} of its peak, --tflops"
            if self.gpu
            else f"{self.speed / 1e9:,.0f} GFLOPS, as this machine multiplies matrices just now"
        )
        return (
            f"in all about {_time(seconds, gpu=self.gpu)} ({rule}) and {stay / 1e9:,.2f} GB, "
            f"{beside / 1e9:,.2f} GB more while {'one runs' if jobs == 1 else f'{jobs} run at a time'}"
        )


def products() -> float:
    """FLOPs a second of this machine's matrix products in float32: the best of a fifth of a second."""
    size, best = 768, 0.0
    one, other = torch.rand(size, size), torch.rand(size, size)
    end = time.perf_counter() + 0.2
    while (began := time.perf_counter()) < end:
        torch.mm(one, other)
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def _forward(recipe: Pretrain) -> float:
    """FLOPs of the encoder on one image, all patches."""
    channels = len(recipe.data.mean)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        encoder = build_encoder(recipe.encoder, recipe.data.sides, channels=channels)
        encoder(torch.empty(1, channels, *recipe.data.sides))
    return float(counter.get_total_flops())


def _costs(recipe: Pretrain, catalog: Catalog) -> Costs | None:
    """What training on one image costs; None of what only a file of a tokenizer would say."""
    if "tokenizer" not in recipe.target.options:
        return costs(recipe, catalog)
    return costs(changed(recipe, ["target.name=pixel"]), catalog) if recipe.method.name == "mae" else None


def _pretraining(recipe: Pretrain, catalog: Catalog) -> float:
    """FLOPs of training on one image."""
    found = _costs(recipe, catalog)
    return 3 * _forward(recipe) if found is None else float(found.training)


def _parameters(recipe: Pretrain, catalog: Catalog) -> tuple[int, int]:
    """Of the encoder, and of all that is trained."""
    found = _costs(recipe, catalog)
    if found is not None:
        return found.encoder_parameters, found.encoder_parameters + found.decoder_parameters
    with torch.device("meta"):
        encoder = build_encoder(recipe.encoder, recipe.data.sides, channels=len(recipe.data.mean))
    return (sum(p.numel() for p in encoder.parameters()),) * 2


def _time(seconds: float, *, gpu: bool) -> str:
    hours = seconds / 3600
    if gpu:
        return f"{hours:,.0f} GPU hours"
    return f"{hours:.1f} hours" if hours >= 2 else f"{seconds / 60:.0f} minutes"
