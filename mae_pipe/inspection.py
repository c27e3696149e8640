"""A recipe or a run folder -> the findings of its guards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mae_pipe import guards, runs
from mae_pipe import recipe as recipes
from mae_pipe.catalog import Catalog
from mae_pipe.data.batch import Batch
from mae_pipe.data.order import Share
from mae_pipe.data.stream import open_stream
from mae_pipe.direct import shards_of
from mae_pipe.errors import RecipeError
from mae_pipe.pretraining import crops
from mae_pipe.recipe import Pretrain
from mae_pipe.reconstructing import load
from mae_pipe.seeding import key
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
        _, task, step = load(folder, catalog)
    else:
        task = MaskedAutoencoder.from_recipe(chosen, catalog)
    batches = _batches(chosen, shards, split, catalog)
    if task.target.fit_images and not is_run:
        with torch.no_grad():
            task.target.fit(
                crops(iter(batches), min(task.target.fit_images, FIT_IMAGES), chosen.data, torch.device("cpu"))
            )
    what = f"the run {folder} at step {step}" if is_run else f"the recipe {subject}, untrained"
    looked_at = f"{what}, on {f'images of {shards}' if shards else 'random pictures'}"
    return looked_at, list(guards.of_pretraining(task, batches[0], trained=is_run))


def _batches(chosen: Pretrain, shards: Path | str | None, split: str, catalog: Catalog) -> list[Batch]:
    """Training crops of shards, or pictures made of soft noise; as many as a target learns from."""
    micro = 64
    if shards is None:
        high, wide = chosen.data.sides
        generator = torch.Generator().manual_seed(key(chosen.seed, "check") % 2**63)
        coarse = torch.rand(micro, len(chosen.data.mean), 8, 8, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, (high, wide), mode="bilinear")
        noisy = smooth + 0.1 * torch.randn(smooth.shape, generator=generator)
        pixels = (noisy * 255).clamp(0, 255).to(torch.uint8)
        return [Batch(pixels, *(torch.arange(micro),) * 3)] * (FIT_IMAGES // micro)
    shards = shards_of(shards, catalog)
    stream = open_stream(shards, split, chosen.data, seed=chosen.seed, share=Share(0, 1, micro), catalog=catalog)
    batches = stream.batches()
    try:
        return [next(batches) for _ in range(max(1, min(FIT_IMAGES, stream.images) // micro))]
    finally:
        batches.close()  # type: ignore[attr-defined]
        stream.close()
