"""``mae-pipe probe`` and ``mae-pipe finetune``: what a pretrained encoder is good for, measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from rich.console import Console

from mae_pipe import launch, runs
from mae_pipe.catalog import Catalog
from mae_pipe.classification import UNTRAINED, Classification, read_weights
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.order import Share
from mae_pipe.data.shelf import Shelf
from mae_pipe.data.stream import Stream
from mae_pipe.disk import write_whole
from mae_pipe.engine import Engine
from mae_pipe.errors import DataError, RunError
from mae_pipe.evaluate import agree_on_buffers, evaluate
from mae_pipe.journal import Journal
from mae_pipe.live import Live
from mae_pipe.optim import Groups, Plan, layer_of, no_decay_finetuning, parameter_groups
from mae_pipe.recipe import Data, Downstream, Pretrain
from mae_pipe.runs import Run, about_data
from mae_pipe.seeding import key, permutation
from mae_pipe.trainer import train

MODEL = "model.safetensors"
RESULT = "result.json"
INHERITED = ("size", "mean", "std", "centre_share")  # from the pretrained run, where the recipe is silent


@dataclass(frozen=True)
class Result:
    """What one downstream run reached at its end.

    Attributes:
        metrics: "loss" and the head's own, such as "top1" and "top5" in [0, 1]: means over ``images`` images.
    """

    folder: Path
    task: str
    metrics: dict[str, float]
    images: int
    split: str
    from_scratch: bool
    labels_per_class: int | None

    def to_json(self) -> dict[str, Any]:
        """Flat, as it stands in result.json."""
        values = {name: value for name, value in vars(self).items() if name not in ("folder", "metrics")}
        return {**self.metrics, **values}


def downstream(
    run: Path,
    recipe: Downstream,
    *,
    catalog: Catalog,
    shards: Path | None = None,
    out: Path | None = None,
    from_scratch: bool = False,
    resume: str = "auto",
    console: Console | None = None,
) -> Result:
    """Train ``recipe``'s head on the encoder of the pretraining run ``run``, and measure it.

    Every process of a job calls it; alone it needs no launcher.

    Args:
        shards: labelled shards; default: those that ``run`` was pretrained on.
        out: run folder, made or gone on with; default: ``folder_of``.
        from_scratch: do not load the pretrained weights, for comparison.
    """
    pretrained = runs.read_recipe(run)
    if not isinstance(pretrained, Pretrain):
        raise RunError(f"{run} is a {pretrained.task} run; give the run folder that mae-pipe pretrain wrote")
    recipe = inherit(recipe, pretrained)
    shards = shards or Path(runs.about(run)["shards"])
    out = out or folder_of(run, recipe, from_scratch=from_scratch)
    weights, fingerprint = (None, UNTRAINED) if from_scratch else read_weights(run)

    here = launch.join()
    share = Share(here.rank, here.world, Plan.of(recipe, 1, here.world).micro_batch)
    classes, stream, held_out = open_splits(shards, recipe, share, catalog)
    plan = Plan.of(recipe, stream.images, here.world)
    # Before the folder is made: a plugin that is not there should leave nothing behind.
    task = Classification.from_recipe(recipe, pretrained, weights, catalog, classes=len(classes))
    folder = Run(out, rank=here.rank)
    about = {"pretrained": str(run.resolve()), "from_scratch": from_scratch, "encoder_fingerprint": fingerprint}
    about |= about_data(shards, recipe.train_split, stream.images, here.world)
    checkpoint = folder.begin(recipe, about, resume=resume)

    # A frozen encoder is saved as it was read: inside the engine it may be rounded to bfloat16.
    untouched = {f"encoder.{n}": w.clone() for n, w in task.encoder.state_dict().items()} if task.frozen else {}
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    folder.make_room(trained, keep=recipe.saving.keep_last)
    engine = Engine(task, groups_of(task, recipe), recipe, micro_batch=plan.micro_batch)
    start = 0 if checkpoint is None else folder.restore(engine, checkpoint)
    journal = Journal(out, active=here.rank == 0)
    journal.cut(start)

    def measure(step: int) -> dict[str, float]:
        agree_on_buffers(task.head)
        metrics = evaluate(engine, held_out)
        journal.write("eval", step, split=recipe.eval_split, images=held_out.images, **metrics)
        return metrics

    def save(step: int) -> None:
        agree_on_buffers(task.head)
        folder.save(engine, step, keep=recipe.saving.keep_last)
        whole = engine.weights()
        if here.rank == 0:
            metadata = {"step": step, "recipe": recipe.model_dump(mode="json"), "classes": classes}
            metadata["encoder"] = pretrained.encoder.model_dump(mode="json")
            folder.save_weights(MODEL, {**whole, **untouched}, metadata)

    def after_step(step: int) -> None:
        if step % plan.steps_of(recipe.eval_every_epochs) == 0 and step < plan.steps:
            measure(step)

    with Live(recipe.task, plan.steps, start=start, console=console, active=here.rank == 0) as live:
        train(
            engine,
            stream,
            plan,
            journal=journal,
            live=live,
            seed=recipe.seed,
            start=start,
            log_every=recipe.logging.every_steps,
            save_every=plan.steps_of(recipe.saving.every_epochs),
            save=save,
            after_step=after_step,
        )
    # Not in the loop: a run that was stopped after its last step still gets its result.
    metrics = measure(plan.steps)
    result = Result(
        out, recipe.task, metrics, held_out.images, recipe.eval_split, from_scratch, recipe.labels_per_class
    )
    if here.rank == 0:
        write_whole(out / RESULT, (json.dumps(result.to_json(), indent=1) + "\n").encode())
    journal.close()
    engine.close()
    stream.close()
    held_out.close()
    return result


def open_splits(shards: Path, recipe: Downstream, share: Share, catalog: Catalog) -> tuple[list[str], Stream, Stream]:
    """The names of the classes, what is trained on, and what is measured."""
    classes = _check(shards, recipe).classes
    shelf = Shelf(shards, recipe.train_split, catalog)
    labels = _labels(shelf, recipe.train_split, len(classes))
    rows = few(labels, recipe, classes) if recipe.labels_per_class else None
    stream = Stream(shelf, recipe.data, seed=recipe.seed, share=share, rows=rows)
    shelf = Shelf(shards, recipe.eval_split, catalog)
    _labels(shelf, recipe.eval_split, len(classes))
    return classes, stream, Stream(shelf, recipe.data, seed=recipe.seed, share=share, training=False)


def inherit(recipe: Downstream, pretrained: Pretrain) -> Downstream:
    """The recipe with the pretrained run's image size, statistics and centre crop, where it does not give its own."""
    missing = {n: getattr(pretrained.data, n) for n in INHERITED if n not in recipe.data.model_fields_set}
    try:
        data = Data.model_validate({**recipe.data.model_dump(), **missing})
    except ValidationError as error:
        what = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise RunError(
            f"the recipe's data does not go with the pretrained run's ({what}); set both, or neither"
        ) from error
    fits = [max(1, side // patch) * patch for side, patch in zip(data.sides, pretrained.encoder.sides, strict=True)]
    if (*fits,) != data.sides:
        raise RunError(
            f"data.size {data.size} is no multiple of the pretrained encoder's patch {pretrained.encoder.patch}; "
            f"set data.size={fits[0] if fits[0] == fits[1] else fits}"
        )
    return recipe.model_copy(update={"data": data})


def folder_of(run: Path, recipe: Downstream, *, from_scratch: bool) -> Path:
    """RUN/probe, RUN/finetune-scratch, RUN/finetune-10, ...: runs that are compared do not collide."""
    labels = f"-{recipe.labels_per_class}" if recipe.labels_per_class else ""
    return run / f"{recipe.task}{'-scratch' if from_scratch else ''}{labels}"


def groups_of(task: Classification, recipe: Downstream) -> Groups:
    """Parameter groups with layer decay: the head learns fastest, the patch embedding slowest."""
    depth, decay = len(task.encoder.blocks), recipe.optimizer.layer_decay

    def lr_scale(name: str) -> float:
        inside = name.removeprefix("encoder.")
        return 1.0 if inside == name else decay ** (depth + 1 - layer_of(inside, depth))

    return parameter_groups(
        task.named_parameters(),
        weight_decay=recipe.optimizer.weight_decay,
        no_decay=lambda name, parameter: no_decay_finetuning(name.removeprefix("encoder."), parameter),
        lr_scale=lr_scale,
    )


def few(labels: NDArray[np.int32], recipe: Downstream, classes: list[str]) -> NDArray[np.int64]:
    """The rows of the first ``labels_per_class`` images of every class, in an order that only the seed decides."""
    wanted = recipe.labels_per_class or len(labels)
    order = permutation(key(recipe.seed, "labels"), len(labels))
    chosen = []
    for label, name in enumerate(classes):
        rows = order[labels[order] == label][:wanted]
        if len(rows) < wanted:
            raise DataError(
                f"the class {name!r} has {len(rows)} images in {recipe.train_split!r}, fewer than labels_per_class "
                f"{wanted}; set labels_per_class={max(1, len(rows))} or less"
            )
        chosen.append(rows)
    return np.sort(np.concatenate(chosen))


def _check(shards: Path, recipe: Downstream) -> Manifest:
    """The manifest of shards that have both splits and labels."""
    manifest = Manifest.load(shards)
    for use, name in (("train_split", recipe.train_split), ("eval_split", recipe.eval_split)):
        if name not in manifest.splits:
            raise DataError(
                f"the shards {shards} have no split {name!r}, they have {', '.join(manifest.splits)}; choose another "
                f"with --set {use}=NAME, or hold images out with: mae-pipe shard ... --split val=0.1"
            )
        if not manifest.splits[name].labelled:
            raise DataError(
                f"the split {name!r} of {shards} has no labels; shard a folder with one sub-folder a class, "
                f"and give it with --shards"
            )
    return manifest


def _labels(shelf: Shelf, split: str, classes: int) -> NDArray[np.int32]:
    """[n] labels of a split, every one a class."""
    labels = shelf.index.label
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise DataError(
            f"{len(wrong)} images of the split {split!r} have no label of {classes} classes, first "
            f"{shelf.index.key(int(wrong[0]))!r}; build the shards again from one sub-folder a class"
        )
    return labels
