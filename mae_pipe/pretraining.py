"""``mae-pipe pretrain``: shards and a recipe become an encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor

from mae_pipe import guards, launch
from mae_pipe.building import TABLES, asked_by, build
from mae_pipe.catalog import Catalog
from mae_pipe.checkpoints import Archive
from mae_pipe.data.arrange import Begun
from mae_pipe.data.batch import Batch
from mae_pipe.data.layout import Numbers
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.order import Share
from mae_pipe.data.stream import Stream, open_stream
from mae_pipe.deferred import deferred
from mae_pipe.direct import READ_FROM, origin_of, shards_of
from mae_pipe.engine import Engine, require
from mae_pipe.engine.state import AVERAGE, WEIGHT
from mae_pipe.errors import DataError, RecipeError
from mae_pipe.journal import Journal
from mae_pipe.live import Live
from mae_pipe.method import Method
from mae_pipe.monitoring.held_out import HeldOut
from mae_pipe.monitoring.watch import Watch
from mae_pipe.optim import Groups, Plan, no_decay_below_two_dimensions, parameter_groups
from mae_pipe.pixels import normalise
from mae_pipe.recipe import Data, Pretrain
from mae_pipe.reconstructing import RunPictures
from mae_pipe.runs import Run, about_data, about_plugins, begun_order
from mae_pipe.stopping import stopping_at_once
from mae_pipe.trainer import train
from mae_pipe.watchdog import naming_a_lost_rank, watched


@naming_a_lost_rank()
@stopping_at_once()
def pretrain(
    recipe: Pretrain,
    shards: Path | str,
    out: Path,
    *,
    catalog: Catalog,
    split: str = "train",
    resume: str = "auto",
    console: Console | None = None,
    seen: Callable[[int, Batch, Tensor], None] | None = None,
) -> None:
    """Pretrain on ``shards``, in the run folder ``out``; goes on where an earlier call stopped.

    Images that are in no shards are read where they lie (``direct``), and shards at a URL from there (``remote``).
    Every process of a job calls it; alone it needs no launcher. ``seen`` sees every
    (step, batch, loss), as in ``trainer.train``.
    """
    given, shards = shards, shards_of(shards, catalog, console)
    here = launch.join()
    require(recipe, here.world)
    micro = Plan.of(recipe, 1, here.world).micro_batch
    share, begun = Share(here.rank, here.world, micro), begun_order(out)
    # Before the folder is made: a plugin that is not there should leave nothing behind.
    classes = len(Manifest.load(shards).classes) or 1  # a method that learns them is refused below where there are none
    task = construct(recipe, catalog, classes=classes)
    stream = stream_of(task, recipe, shards, split, share=share, catalog=catalog, begun=begun)
    held_out = held_out_of(task, recipe, shards, split, share=share, catalog=catalog)
    plan = Plan.of(recipe, stream.images, here.world)
    run = Run(out, rank=here.rank)
    if resume == "none" or (resume == "auto" and not any(run.checkpoints.glob("step-*"))):
        prepare(task, stream, recipe, run)
    about = about_data(shards, split, stream, here.world) | {"provenance": task.provenance()}
    about |= {} if given == shards else {READ_FROM: origin_of(given)}
    about |= about_plugins(catalog, shards, **plugins_of(recipe, catalog))
    checkpoint = run.begin(recipe, about, resume=resume)
    run.make_room(sum(p.numel() for p in task.parameters()), keep=recipe.saving.keep_last, averaged=recipe.ema > 0)
    engine = Engine(task, groups_of(task, recipe), recipe, micro_batch=plan.micro_batch, average=recipe.ema)
    start = 0 if checkpoint is None else run.restore(engine, checkpoint)
    journal = Journal(out, active=here.rank == 0)
    journal.cut(start or -1)  # a run that begins anew reads its first numbers again

    tell = partial(publish, run, recipe, task.published)
    saver = run.saver(engine, recipe, plan, tell)
    if start == plan.steps and here.rank == 0 and checkpoint is not None:
        tell(Archive.of(checkpoint))  # it may have been killed between the two
    draw: Callable[[int, Engine], None] = lambda step, engine: None  # noqa: E731
    if task.reconstructs:
        every = plan.steps_of(recipe.logging.pictures_every_epochs)
        draw = RunPictures.of(out, shards, recipe, catalog, every=every, last=plan.steps, active=here.rank == 0)
    if start == 0:
        draw(0, engine)
    with Live("pretrain", plan.steps, start=start, console=console, active=here.rank == 0) as live:
        live.say(stream.about)
        for line in _notices(task, recipe, plan, held_out):
            live.say(line)
        watch = Watch(recipe, plan, held_out, task.signs, journal=journal, live=live)
        if start == 0:
            watch(0, engine)

        def after_step(step: int) -> None:
            draw(step, engine)
            watch(step, engine)

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
            save=saver.save,
            finish=saver.finish,
            faults=recipe.faults,
            restore=lambda: run.go_back(engine, saver),
            key_of=stream.index.key,
            seen=seen,
            stepped=lambda step, made: task.after_step(step / plan.steps) if made else task.after_skip(),
            after_step=after_step,
        )
    journal.close()
    engine.close()
    stream.close()
    if held_out is not None:
        held_out.close()


def _notices(task: Method, recipe: Pretrain, plan: Plan, held_out: object | None) -> Iterator[str]:
    """What a run does otherwise than its recipe may seem to say."""
    if task.batchwise and plan.accumulation > 1:
        together = plan.global_batch // plan.accumulation
        yield (
            f"{recipe.method.name} compares the images of a micro-batch: {together} at once, "
            f"not all {plan.global_batch} of a step; raise data.micro_batch where memory allows it"
        )
    if recipe.monitor.every_epochs and held_out is None:
        yield (
            f"monitor: the shards have no split {recipe.monitor.split!r}, so no image is held out and only the "
            "training loss is watched; name another with monitor.split, or shard with --split val=0.02"
        )


def construct(recipe: Pretrain, catalog: Catalog, *, classes: int) -> Method:
    """The recipe's task; with ``engine.sharded_construction`` without its parameters, which the engine makes."""
    if catalog.find("method", recipe.method.name).follows and recipe.engine.zero == 3:
        raise RecipeError(
            f"the method {recipe.method.name!r} has a part that follows the encoder, of which every process needs the "
            "whole; set engine.zero to 2 or less"
        )
    make = partial(build, recipe, catalog, classes=classes)
    return deferred(make) if recipe.engine.sharded_construction else make()


def stream_of(
    task: Method,
    recipe: Pretrain,
    shards: Path,
    split: str,
    *,
    share: Share,
    catalog: Catalog,
    begun: Begun | None = None,
    rows: Numbers | None = None,
) -> Stream:
    """The views that ``task`` wants of a split, or of some rows of it.

    Raises:
        DataError: it learns from labels, and an image has none.
    """
    stream = open_stream(
        shards,
        split,
        recipe.data,
        seed=recipe.seed,
        share=share,
        catalog=catalog,
        views=task.views,
        begun=begun,
        rows=rows,
    )
    if task.labelled and (stream.index.label < 0).any():
        raise DataError(
            f"the method {recipe.method.name!r} learns from labels, and images of the split {split!r} of {shards} "
            "have none; shard a folder with a subfolder for each class, or choose another method"
        )
    return stream


def held_out_of(
    task: Method, recipe: Pretrain, shards: Path, split: str, *, share: Share, catalog: Catalog
) -> HeldOut | None:
    """What ``monitor`` reads of the images that are held out; None where it is off, or there are none."""
    if not recipe.monitor.every_epochs:
        return None

    def views(calm: Pretrain, of: str, rows: Numbers) -> Stream:
        return stream_of(task, calm, shards, of, share=share, catalog=catalog, rows=rows)

    several = len(task.views) > 1
    return HeldOut.of(recipe, shards, split, share=share, several=several, catalog=catalog, views=views)


def groups_of(task: Method, recipe: Pretrain) -> Groups:
    """Parameter groups by the recipe's weight decay, and by what the method holds back."""

    def held_back(name: str) -> float:
        return max((epochs for first, epochs in task.held_back.items() if name.startswith(first)), default=0.0)

    rule = (lambda name, parameter: False) if recipe.optimizer.decay_all else no_decay_below_two_dimensions
    return parameter_groups(
        task.named_parameters(), weight_decay=recipe.optimizer.weight_decay, no_decay=rule, held_back=held_back
    )


def plugins_of(recipe: Pretrain, catalog: Catalog) -> dict[str, str]:
    """Kind -> name of what the recipe's method is made of."""
    used = {"method": recipe.method.name}
    asked = asked_by(recipe, catalog)
    return used | {kind: getattr(recipe, kind).name for kind in ("mask", "target") if TABLES[kind] & asked}


def prepare(task: Method, stream: Stream, recipe: Pretrain, run: Run) -> None:
    """Before a first step: let the target learn from training crops, and check that the model can learn.

    Rank 0 does both, and all get the target's buffers. A model that no process holds whole is not checked.
    """
    here = launch.join()
    device = torch.device("cuda", here.local_rank) if torch.cuda.is_available() else torch.device("cpu")
    sharded, target = recipe.engine.sharded_construction, task.fitted()
    for part in (target,) if sharded else (task,):
        if part is not None:
            part.to(device)
    one = Share(0, 1, recipe.data.micro_batch)
    alone = Stream(stream.shelf, recipe.data, seed=recipe.seed, share=one, views=task.views)

    def fit_and_check() -> None:
        with closing(alone.batches()) as batches:  # type: ignore[type-var]
            if target is not None and target.fit_images:
                with torch.no_grad():
                    target.fit(crops(watched(batches), min(target.fit_images, alone.images), recipe.data, device))
            if not sharded:
                guards.require(guards.of_method(task, next(batches)))

    run.on_rank_0(fit_and_check)
    if here.world > 1 and target is not None:
        for buffer in target.buffers():
            dist.broadcast(buffer, 0)


def crops(batches: Iterator[Batch], wanted: int, data: Data, device: torch.device) -> Iterator[Tensor]:
    """The first ``wanted`` images of a stream, normalised, [B, C, H, W]."""
    while wanted > 0:
        pixels = next(batches).pixels[:wanted].to(device)
        wanted -= len(pixels)
        yield normalise(pixels, data.mean, data.std)


def publish(run: Run, recipe: Pretrain, published: str, archive: Archive) -> None:
    """``model.safetensors``, all of the method, and ``encoder.safetensors``, with timm's names: averages if kept."""
    metadata = {"step": archive.record.step, "recipe": recipe.model_dump(mode="json")}
    entries = archive.entries(AVERAGE if AVERAGE in archive.kinds else WEIGHT)
    run.save_weights("model.safetensors", entries, metadata)
    first = f"{published}."
    encoder = [replace(e, name=e.name.removeprefix(first)) for e in entries if e.name.startswith(first)]
    # The mask token means nothing where no patch is hidden.
    run.save_weights("encoder.safetensors", [e for e in encoder if e.name != "mask_token"], metadata)
