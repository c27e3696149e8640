"""Training a model, and measuring it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mae_pipe.recipe import Changes, Downstream, Pretrain
from mae_pipe.verbs.given import (
    AnyRecipe,
    Place,
    catalog_of,
    in_processes,
    path_of,
    place_of,
    recipe_of,
    several,
    shown,
)

if TYPE_CHECKING:
    from rich.console import Console

    from mae_pipe.downstream import Result
    from mae_pipe.evaluating.evaluation import Evaluations


@dataclass(frozen=True)
class Pretrained:
    """A run folder after pretraining.

    Attributes:
        encoder: the file of its weights, timm's names.
        loss: of the last step that was written down.
    """

    folder: Path
    encoder: Path
    steps: int
    loss: float


def pretrain(
    recipe: AnyRecipe,
    shards: Place,
    out: Place,
    *,
    changes: Changes = (),
    split: str = "train",
    resume: str = "auto",
    nproc: int = 1,
    plugins: Sequence[Place] = (),
    console: Console | None = None,
) -> Pretrained:
    """Pretrain a masked autoencoder on ``shards`` (or images), in the run folder ``out``; goes on where it stopped.

    Args:
        resume: "auto", "none", or the path of a checkpoint.
        nproc: processes to start on this machine; what they say goes to the terminal.
        plugins: Python files with plugins.

    Raises:
        MaePipeError: the recipe, the data, a plugin or the run folder does not fit, or training cannot go on.
    """
    from mae_pipe import outcome

    chosen = recipe_of(recipe, changes, "pretrain", Pretrain)
    if several(nproc):
        options = {"shards": shards, "out": out, "split": split, "resume": resume}
        in_processes(nproc, ["pretrain"], options, plugins=plugins, chosen=chosen)
    else:
        from mae_pipe import pretraining

        pretraining.pretrain(
            chosen,
            place_of(shards),
            Path(out),
            catalog=catalog_of(plugins),
            split=split,
            resume=resume,
            console=shown(console),
        )
    last = outcome.metrics(Path(out))[0][-1]
    return Pretrained(Path(out), Path(out) / "encoder.safetensors", int(last["step"]), float(last["loss"]))


def probe(
    run: Place,
    recipe: AnyRecipe = "probe",
    *,
    shards: Place | None = None,
    changes: Changes = (),
    out: Place | None = None,
    from_scratch: bool = False,
    resume: str = "auto",
    cached: bool = False,
    views: int = 0,
    nproc: int = 1,
    plugins: Sequence[Place] = (),
    console: Console | None = None,
) -> Result:
    """Train a head on the frozen encoder of ``run``, and measure it.

    Args:
        run: folder of a pretraining.
        shards: labelled ones, or images; default: those of ``run``.
        out: run folder; default: ``probe``, ``probe-scratch``, ... inside ``run``.
        from_scratch: leave the encoder untrained, for comparison.
        cached: learn from features, computed once (docs/features.md).
        views: with ``cached``, of so many random crops of every training image; 0: of its centre.
        resume, nproc, plugins: as of ``pretrain``.

    Raises:
        MaePipeError: as ``pretrain``.
    """
    given = shards, changes, out, from_scratch, resume, nproc, plugins, console
    return _downstream("probe", run, recipe, *given, cached=cached, views=views)


def finetune(
    run: Place,
    recipe: AnyRecipe = "finetune",
    *,
    shards: Place | None = None,
    changes: Changes = (),
    out: Place | None = None,
    from_scratch: bool = False,
    resume: str = "auto",
    nproc: int = 1,
    plugins: Sequence[Place] = (),
    console: Console | None = None,
) -> Result:
    """Train the encoder of ``run`` with a head on labelled images, and measure it; arguments as of ``probe``."""
    return _downstream("finetune", run, recipe, shards, changes, out, from_scratch, resume, nproc, plugins, console)


def _downstream(
    task: Literal["probe", "finetune"],
    run: Place,
    recipe: AnyRecipe,
    shards: Place | None,
    changes: Changes,
    out: Place | None,
    from_scratch: bool,
    resume: str,
    nproc: int,
    plugins: Sequence[Place],
    console: Console | None,
    *,
    cached: bool = False,
    views: int = 0,
) -> Result:
    from mae_pipe import downstream, opening

    chosen = recipe_of(recipe, changes, task, Downstream)
    if several(nproc):
        how = "cached" if cached else ""
        default = opening.folder_of(Path(run), chosen, from_scratch=from_scratch, how=how)
        place = default if out is None else Path(out)
        options: dict[str, Any] = {"shards": shards, "out": place, "from-scratch": from_scratch, "resume": resume}
        options |= {"cached": cached, "views": views or None}
        in_processes(nproc, [task, str(run)], options, plugins=plugins, chosen=chosen, recipe_option=["--recipe"])
        return downstream.Result.read(place)
    return downstream.downstream(
        Path(run),
        chosen,
        catalog=catalog_of(plugins),
        shards=None if shards is None else place_of(shards),
        out=path_of(out),
        from_scratch=from_scratch,
        resume=resume,
        cached=cached,
        views=views,
        console=shown(console),
    )


def evaluate(
    run: Place,
    source: Place | None = None,
    *,
    split: str | None = None,
    each: bool = False,
    class_map: Place | None = None,
    all_classes: bool = False,
    size: int | None = None,
    crop_share: float | None = None,
    changes: Changes = (),
    out: Place | None = None,
    predictions: Place | None = None,
    nproc: int = 1,
    plugins: Sequence[Place] = (),
    console: Console | None = None,
) -> Evaluations:
    """Measure the probed or finetuned ``run`` on labelled images (docs/evaluation.md).

    Args:
        source: shards or images; default: those that the run was evaluated on.
        each: every folder of images below ``source`` is a set of its own.
        class_map: file that says which class of the run a class of ``source`` is.
        all_classes: answers may be classes that ``source`` has not.
        size: pixels of the model's images.
        crop_share: side of what is shown, in the image's short side.
        changes: of keys of ``data``.
        out: the JSON file; default: ``evaluation.json`` in the run.
        predictions: CSV file, a line an image.

    Returns:
        One set or several; of one, ``.only.scores`` has accuracies, confusion [C, C] and calibration.

    Raises:
        MaePipeError: the folder holds no such run, or the images or their classes do not go with it.
    """
    written = Path(out) if out is not None else Path(run) / "evaluation.json"
    if several(nproc):
        from mae_pipe.evaluating.writing import read

        options: dict[str, Any] = {
            "split": split,
            "each": each,
            "class-map": class_map,
            "all-classes": all_classes,
            "size": size,
        }
        options |= {"crop-share": crop_share, "out": written, "predictions": predictions}
        places = [str(place) for place in (run, source) if place is not None]
        in_processes(nproc, ["evaluate", *places], options, changes=changes, plugins=plugins)
        return read(written)
    from mae_pipe.evaluating.measuring import Asked, measure

    return measure(
        Path(run),
        None if source is None else place_of(source),
        catalog=catalog_of(plugins),
        asked=Asked(split, path_of(class_map), all_classes),
        size=size,
        centre_share=crop_share,
        changes=changes,
        each=each,
        out=written,
        predictions=path_of(predictions),
        console=shown(console),
    )
