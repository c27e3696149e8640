"""A recipe or a run folder -> the findings of its guards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mae_pipe import guards, runs
from mae_pipe import recipe as recipes
from mae_pipe.building import CLASSES, build
from mae_pipe.catalog import Catalog
from mae_pipe.data.batch import Batch
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.order import Share
from mae_pipe.direct import shards_of
from mae_pipe.errors import RecipeError, RunError
from mae_pipe.method import Method
from mae_pipe.pretraining import crops, stream_of
from mae_pipe.recipe import Pretrain
from mae_pipe.reconstructing import fill
from mae_pipe.seeding import key
from mae_pipe.standins import batch_for
from mae_pipe.tasks import MaskedAutoencoder

FIT_IMAGES = 1024  # that a target learns from here, where it has to


def inspect(
    subject: str, changes: Sequence[str], *, shards: Path | str | None, catalog: Catalog
) -> tuple[str, list[guards.Finding]]:
    """What was looked at, in words, and what was found."""
    folder = Path(subject)
    is_run = (folder / "recipe.json").is_file()
    if is_run and changes:
        raise RecipeError(f"{folder} is a run, whose recipe is fixed; leave out --set, or name a recipe")
    chosen = runs.read_recipe(folder) if is_run else recipes.load(subject, changes)
    if not isinstance(chosen, Pretrain):
        raise RecipeError(f"{subject} is a {chosen.task} recipe; give one of pretraining, or a pretraining run")
    split, step = "train", 0
    if is_run:
        about = runs.about(folder)
        split = about.get("split", split)  # an imported run has neither
        shards = shards or (found if "shards" in about and (found := Path(about["shards"])).is_dir() else None)
    given = shards
    shards = None if shards is None else shards_of(shards, catalog)
    classes = CLASSES if shards is None else len(Manifest.load(shards).classes) or 1
    task = build(chosen, catalog, classes=classes)
    if is_run and task.labelled and shards is None:
        raise RunError(f"the shards of {folder} are not where they were, and it learned their classes; give --shards")
    batches = _batches(task, chosen, shards, split, catalog, classes)
    if is_run:
        step = fill(task, folder)
    elif (target := task.fitted()) is not None and target.fit_images:
        with torch.no_grad():
            target.fit(crops(iter(batches), min(target.fit_images, FIT_IMAGES), chosen.data, torch.device("cpu")))
    what = f"the run {folder} at step {step}" if is_run else f"the recipe {subject}, untrained"
    looked_at = f"{what}, on {f'images of {given}' if given else 'random pictures'}"
    if isinstance(task, MaskedAutoencoder):
        return looked_at, list(guards.of_pretraining(task, batches[0], trained=is_run))
    return looked_at, list(guards.of_method(task, batches[0]))


def _batches(
    task: Method, chosen: Pretrain, shards: Path | None, split: str, catalog: Catalog, classes: int
) -> list[Batch]:
    """Training views of shards, or of pictures made of soft noise; as many as a target learns from."""
    micro = 64
    if shards is None:
        noise = batch_for(task, micro, classes=classes, seed=key(chosen.seed, "check") % 2**63)
        return [noise] * (FIT_IMAGES // micro)
    stream = stream_of(task, chosen, shards, split, share=Share(0, 1, micro), catalog=catalog)
    batches = stream.batches()
    try:
        return [next(batches) for _ in range(max(1, min(FIT_IMAGES, stream.images) // micro))]
    finally:
        batches.close()  # type: ignore[attr-defined]
        stream.close()
