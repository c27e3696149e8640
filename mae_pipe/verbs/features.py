"""Features of a frozen encoder, and probes that choose among many settings on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mae_pipe.recipe import Changes, Downstream
from mae_pipe.verbs.given import AnyRecipe, Place, catalog_of, path_of, place_of, recipe_of, shown

if TYPE_CHECKING:
    from rich.console import Console

    from mae_pipe.features.identity import Manifest
    from mae_pipe.features.results import Probed


def embed(
    run: Place,
    source: Place,
    *,
    out: Place | None = None,
    pool: Literal["token", "mean", "tokens"] = "mean",
    before_norm: bool = False,
    splits: Sequence[str] = (),
    size: int | None = None,
    views: int = 0,
    dtype: Literal["float32", "float16"] = "float32",
    format: Literal["safetensors", "parquet"] = "safetensors",
    workers: int | None = None,
    plugins: Sequence[Place] = (),
) -> dict[Path, Manifest]:
    """Compute features of ``source``, shards or images, by the encoder of ``run`` (docs/features.md).

    Args:
        out: a folder for each split is made in it; default: ``features`` in ``run``, where probes look.
        pool: the class token, the mean of the patch tokens, [D] each; or all tokens, [T + N, D].
        before_norm: without the encoder's final norm.
        splits: default: all of ``source``.
        size: pixels of the model's images; default: the run's.
        views: random crops of every image; 0: its centre.

    Returns:
        What is in each folder that was made.

    Raises:
        MaePipeError: the run or the images cannot be read, or ``out`` holds something else.
    """
    from mae_pipe.features.embed import embed as extract

    return extract(
        Path(run),
        place_of(source),
        catalog=catalog_of(plugins),
        out=path_of(out),
        kind=pool,
        normed=not before_norm,
        dtype=dtype,
        format=format,
        splits=tuple(splits),
        size=size,
        views=views,
        workers=workers,
    )


def sweep(
    run: Place,
    recipe: AnyRecipe = "probe",
    *,
    rates: Sequence[float] = (),
    decays: Sequence[float] = (),
    held_out: float = 0.0,
    views: int = 0,
    shards: Place | None = None,
    changes: Changes = (),
    out: Place | None = None,
    from_scratch: bool = False,
    plugins: Sequence[Place] = (),
    console: Console | None = None,
) -> Probed:
    """Train a linear head for each of many learning rates together, on features; the best is kept.

    Args:
        rates, decays: values of optimizer.base_lr and of optimizer.weight_decay; default: around the recipe's.
        held_out: share of the training images to choose on; 0: the evaluation split, as papers do.
        views, shards, out, from_scratch: as of ``probe``.

    Raises:
        MaePipeError: as ``probe``; or the head is not linear.
    """
    from mae_pipe.features import sweep as sweeping

    return sweeping.sweep(
        Path(run),
        recipe_of(recipe, changes, "probe", Downstream),
        catalog=catalog_of(plugins),
        rates=tuple(rates),
        decays=tuple(decays),
        aside=held_out,
        views=views,
        shards=None if shards is None else place_of(shards),
        out=path_of(out),
        from_scratch=from_scratch,
        console=shown(console),
    )


def logistic(
    run: Place,
    recipe: AnyRecipe = "probe",
    *,
    held_out: float = 0.1,
    shards: Place | None = None,
    changes: Changes = (),
    out: Place | None = None,
    from_scratch: bool = False,
    plugins: Sequence[Place] = (),
    console: Console | None = None,
) -> Probed:
    """Fit a logistic regression by L-BFGS on features, its L2 chosen on ``held_out`` of the training images.

    Raises:
        MaePipeError: as ``sweep``.
    """
    from mae_pipe.features.regression import regression

    return regression(
        Path(run),
        recipe_of(recipe, changes, "probe", Downstream),
        catalog=catalog_of(plugins),
        aside=held_out,
        shards=None if shards is None else place_of(shards),
        out=path_of(out),
        from_scratch=from_scratch,
        console=shown(console),
    )
