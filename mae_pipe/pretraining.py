"""``mae-pipe pretrain``: shards and a recipe become an encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor

from mae_pipe import guards, launch
from mae_pipe.catalog import Catalog
from mae_pipe.checkpoints import Archive
from mae_pipe.data.batch import Batch
from mae_pipe.data.order import Share
from mae_pipe.data.stream import Stream, open_stream
from mae_pipe.deferred import deferred
from mae_pipe.direct import READ_FROM, origin_of, shards_of
from mae_pipe.engine import Engine, require
from mae_pipe.journal import Journal
from mae_pipe.live import Live
from mae_pipe.optim import Plan, parameter_groups
from mae_pipe.pixels import normalise
from mae_pipe.recipe import Data, Pretrain
from mae_pipe.reconstructing import RunPictures
from mae_pipe.runs import Run, about_data, about_plugins, begun_order
from mae_pipe.stopping import stopping_at_once
from mae_pipe.tasks import Pretraining
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
    stream = open_stream(shards, split, recipe.data, seed=recipe.seed, share=share, catalog=catalog, begun=begun)
    plan = Plan.of(recipe, stream.images, here.world)
    # Before the folder is made: a plugin that is not there should leave nothing behind.
    task = construct(recipe, catalog)
    run = Run(out, rank=here.rank)
    if resume == "none" or (resume == "auto" and not any(run.checkpoints.glob("step-*"))):
        prepare(task, stream, recipe, run)
    about = about_data(shards, split, stream, here.world) | {"provenance": task.target.provenance()}
    about |= {} if given == shards else {READ_FROM: origin_of(given)}
    about |= about_plugins(catalog, shards, mask=recipe.mask.name, target=recipe.target.name)
    checkpoint = run.begin(recipe, about, resume=resume)
    run.make_room(sum(p.numel() for p in task.parameters()), keep=recipe.saving.keep_last)
    groups = parameter_groups(task.named_parameters(), weight_decay=recipe.optimizer.weight_decay)
    engine = Engine(task, groups, recipe, micro_batch=plan.micro_batch)
    start = 0 if checkpoint is None else run.restore(engine, checkpoint)
    journal = Journal(out, active=here.rank == 0)
    journal.cut(start)

    saver = run.saver(engine, recipe, plan, lambda archive: publish(run, recipe, archive))
    if start == plan.steps and here.rank == 0 and checkpoint is not None:
        publish(run, recipe, Archive.of(checkpoint))  # it may have been killed between the two
    every = plan.steps_of(recipe.logging.pictures_every_epochs)
    draw = RunPictures.of(out, shards, recipe, catalog, every=every, last=plan.steps, active=here.rank == 0)
    if start == 0:
        draw(0, engine)
    with Live("pretrain", plan.steps, start=start, console=console, active=here.rank == 0) as live:
        live.say(stream.about)
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
            after_step=lambda step: draw(step, engine),
        )
    journal.close()
    engine.close()
    stream.close()


def construct(recipe: Pretrain, catalog: Catalog) -> Pretraining:
    """The recipe's task; with ``engine.sharded_construction`` without its parameters, which the engine makes."""
    if recipe.engine.sharded_construction:
        return deferred(lambda: Pretraining.from_recipe(recipe, catalog))
    return Pretraining.from_recipe(recipe, catalog)


def prepare(task: Pretraining, stream: Stream, recipe: Pretrain, run: Run) -> None:
    """Before a first step: let the target learn from training crops, and check that the model can learn.

    Rank 0 does both, and all get the target's buffers. A model that no process holds whole is not checked.
    """
    here = launch.join()
    device = torch.device("cuda", here.local_rank) if torch.cuda.is_available() else torch.device("cpu")
    sharded = recipe.engine.sharded_construction
    (task.target if sharded else task).to(device)
    alone = Stream(stream.shelf, recipe.data, seed=recipe.seed, share=Share(0, 1, recipe.data.micro_batch))

    def fit_and_check() -> None:
        with closing(alone.batches()) as batches:  # type: ignore[type-var]
            if task.target.fit_images:
                with torch.no_grad():
                    task.target.fit(
                        crops(watched(batches), min(task.target.fit_images, alone.images), recipe.data, device)
                    )
            if not sharded:
                guards.require(guards.of_pretraining(task, next(batches)))

    run.on_rank_0(fit_and_check)
    if here.world > 1:
        for buffer in task.target.buffers():
            dist.broadcast(buffer, 0)


def crops(batches: Iterator[Batch], wanted: int, data: Data, device: torch.device) -> Iterator[Tensor]:
    """The first ``wanted`` images of a stream, normalised, [B, C, H, W]."""
    while wanted > 0:
        pixels = next(batches).pixels[:wanted].to(device)
        wanted -= len(pixels)
        yield normalise(pixels, data.mean, data.std)


def publish(run: Run, recipe: Pretrain, archive: Archive) -> None:
    """``model.safetensors``, the whole autoencoder, and ``encoder.safetensors``, with timm's names."""
    metadata = {"step": archive.record.step, "recipe": recipe.model_dump(mode="json")}
    entries = archive.entries()
    run.save_weights("model.safetensors", entries, metadata)
    encoder = [replace(e, name=e.name.removeprefix("encoder.")) for e in entries if e.name.startswith("encoder.")]
    # The mask token means nothing where no patch is hidden.
    run.save_weights("encoder.safetensors", [e for e in encoder if e.name != "mask_token"], metadata)
