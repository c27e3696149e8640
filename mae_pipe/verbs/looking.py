"""Looking at runs and recipes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mae_pipe import recipe as toml
from mae_pipe.recipe import Changes, Pretrain, Recipe
from mae_pipe.verbs.given import AnyRecipe, Place, catalog_of, path_of, place_of, recipe_of

if TYPE_CHECKING:
    from mae_pipe.planning.forecast import Forecast

IMAGENET = 1_281_167  # images


def reconstruct(
    run: Place,
    images: Sequence[Place] = (),
    out: Place = "reconstructions.png",
    *,
    shards: Place | None = None,
    split: str = "val",
    count: int = 8,
    seed: int | None = None,
    ratio: float | None = None,
    mask: str | None = None,
    plugins: Sequence[Place] = (),
) -> Path:
    """Draw what a pretrained ``run`` predicts for image files, and for ``count`` images of ``shards``; the PNG's path.

    ``seed``, ``ratio`` and ``mask`` hide other patches than the run did.

    Raises:
        MaePipeError: the run has no model yet, or an image cannot be used.
    """
    from mae_pipe import reconstructing

    return reconstructing.reconstruct(
        Path(run),
        [Path(image) for image in images],
        Path(out),
        catalog=catalog_of(plugins),
        shards=None if shards is None else place_of(shards),
        split=split,
        count=count,
        seed=seed,
        ratio=ratio,
        mask=mask,
    )


def report(runs: Place | Sequence[Place], out: Place | None = None) -> Path:
    """Write the page of a run, or of several compared; its path.

    Args:
        runs: folders of pretraining, probes and finetunings; a downstream run stands with its pretraining run.
        out: by default ``RUN/report.html``, of several runs ``report.html`` in the working directory.

    Raises:
        RunError: one of ``runs`` is no run folder, or there is none.
    """
    from mae_pipe import reporting

    given = [runs] if isinstance(runs, str | os.PathLike) else runs
    return reporting.write([Path(run) for run in given], path_of(out))


def recipes() -> dict[str, Recipe]:
    """The built-in recipes by name."""
    return {name: toml.load(name) for name in toml.names()}


def plan(
    recipe: AnyRecipe,
    *,
    changes: Changes = (),
    images: int = IMAGENET,
    gpus: int = 1,
    nodes: int = 1,
    gpu_memory: float = 80.0,
    host_memory: float | None = None,
    images_per_second: float | None = None,
    peak_tflops: float | None = None,
    utilization: float = 0.4,
    link: float = 300.0,
    network: float = 50.0,
    device: Literal["cuda", "cpu"] = "cuda",
    plugins: Sequence[Place] = (),
) -> Forecast:
    """What pretraining by ``recipe`` takes: ``.costs`` has parameters and FLOPs, ``.as_dict()`` all of it.

    Args:
        images: in an epoch.
        gpus: of each of ``nodes``; on a CPU processes.
        gpu_memory, host_memory: GB; of the host by default 1000, on a CPU this machine's.
        images_per_second: of one GPU by itself, as measured.
        peak_tflops, utilization: of one GPU, and the share of it that a run reaches.
        link, network: GB/s of a GPU to others of its node, and of a node to others.

    Raises:
        RecipeError: the recipe does not fit, or not on these machines.
    """
    from mae_pipe.planning import forecast
    from mae_pipe.planning.machines import Machines, here
    from mae_pipe.planning.traffic import Links

    machines = here(gpus) if device == "cpu" else Machines(gpus=gpus, nodes=nodes, memory=gpu_memory)
    machines = machines.but(
        host=host_memory,
        rate=images_per_second,
        tflops=peak_tflops,
        utilization=utilization,
        links=Links(gpus, link, network),
    )
    chosen = recipe_of(recipe, changes, "pretrain", Pretrain)
    return forecast.Forecast(chosen, catalog_of(plugins), machines, images=images)
