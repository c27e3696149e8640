"""``mae-pipe tokenizer train``: shards and a recipe become a tokenizer."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from rich.console import Console
from torch import Tensor

from mae_pipe import launch
from mae_pipe.catalog import Catalog
from mae_pipe.checkpoints import Archive
from mae_pipe.data.device import placed
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.order import Share
from mae_pipe.data.stream import Stream, open_stream
from mae_pipe.direct import shards_of
from mae_pipe.disk import going_on_without, write_whole
from mae_pipe.engine import Engine, require
from mae_pipe.journal import Journal
from mae_pipe.live import Live
from mae_pipe.optim import Plan, parameter_groups
from mae_pipe.recipe import Tokenizer
from mae_pipe.runs import Run, about_data, about_plugins, begun_order
from mae_pipe.stopping import stopping_at_once
from mae_pipe.tokenizer.folder import About, save_tokenizer
from mae_pipe.tokenizer.task import Tokenizing
from mae_pipe.trainer import train
from mae_pipe.watchdog import naming_a_lost_rank

RESULT = "result.json"
PICTURES = 8  # images in the picture of reconstructions
MEASURED = 2048  # images at most that PSNR and use are measured on


@dataclass(frozen=True)
class Result:
    """What a tokenizer reached.

    Attributes:
        psnr: mean over images, in dB.
        perplexity: of the tokens' frequencies: how many equally frequent ones would be as surprising.
        used: share of the codebook that stands for anything.
    """

    folder: Path
    psnr: float
    perplexity: float
    used: float
    images: int
    split: str
    hash: str


@naming_a_lost_rank()
@stopping_at_once()
def train_tokenizer(
    recipe: Tokenizer,
    shards: Path | str,
    out: Path,
    *,
    catalog: Catalog,
    split: str = "train",
    resume: str = "auto",
    console: Console | None = None,
) -> Result:
    """Train on ``shards``, in the folder ``out``; goes on where an earlier call stopped. All ranks call it."""
    shards = shards_of(shards, catalog, console)
    here = launch.join()
    require(recipe, here.world)
    micro = Plan.of(recipe, 1, here.world).micro_batch
    share = Share(here.rank, here.world, micro)
    begun = begun_order(out)
    stream = open_stream(shards, split, recipe.data, seed=recipe.seed, share=share, catalog=catalog, begun=begun)
    plan = Plan.of(recipe, stream.images, here.world)
    wanted = Manifest.load(shards).splits.get(recipe.eval_split)
    held = recipe.eval_split if wanted is not None and wanted.images else split
    measured = _few(
        open_stream(shards, held, recipe.data, seed=0, share=share, catalog=catalog, training=False), recipe
    )

    task = Tokenizing.from_recipe(recipe, plan.steps)
    run = Run(out, rank=here.rank)
    about = about_data(shards, split, stream, here.world) | about_plugins(catalog, shards)
    checkpoint = run.begin(recipe, about, resume=resume)
    run.make_room(sum(p.numel() for p in task.parameters()), keep=recipe.saving.keep_last)
    groups = parameter_groups(task.named_parameters(), weight_decay=recipe.optimizer.weight_decay)
    engine = Engine(task, groups, recipe, micro_batch=plan.micro_batch)
    start = 0 if checkpoint is None else run.restore(engine, checkpoint)
    journal = Journal(out, active=here.rank == 0)
    journal.cut(start)
    hashes = [""]  # of the tokenizers that were written, on rank 0

    def publish(archive: Archive) -> None:
        own = {name.removeprefix("network."): tensor for name, tensor in archive.weights().items()}
        source = f"{out.resolve().name} at step {archive.record.step}"
        hashes.append(save_tokenizer(out, about_of(recipe, source), own))

    saver = run.saver(engine, recipe, plan, publish)

    def measure(step: int) -> dict[str, float]:
        found = evaluate(engine, measured, recipe.tokenizer.codebook, out if here.rank == 0 else None)
        journal.write("eval", step, split=held, images=measured.images, **found)
        return found

    def after_step(step: int) -> None:
        task.network.quantizer.after_step()
        if step % plan.steps_of(recipe.logging.pictures_every_epochs) == 0 and step < plan.steps:
            measure(step)

    with Live("tokenizer", plan.steps, start=start, console=console, active=here.rank == 0) as live:
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
            after_step=after_step,
        )
    # Not in the loop: a run that was stopped after its last step still gets its result.
    if start == plan.steps and here.rank == 0 and checkpoint is not None:
        publish(Archive.of(checkpoint))
    result = Result(out, **measure(plan.steps), images=measured.images, split=held, hash=hashes[-1])
    if here.rank == 0:
        said: dict[str, Any] = {name: value for name, value in vars(result).items() if name != "folder"}
        write_whole(out / RESULT, (json.dumps(said, indent=1) + "\n").encode())
    journal.close()
    engine.close()
    stream.close()
    measured.close()
    return result


def about_of(recipe: Tokenizer, source: str) -> About:
    """What the folder of a trained tokenizer says."""
    return About(
        layout="mae-pipe",
        codebook=recipe.tokenizer.codebook,
        downsampling=recipe.tokenizer.downsampling,
        channels=len(recipe.data.mean),
        trained_at=recipe.data.sides,
        shape=recipe.tokenizer,
        source=source,
    )


def _few(stream: Stream, recipe: Tokenizer) -> Stream:
    """The same stream, over at most so many images, spread evenly."""
    rows = np.unique(np.linspace(0, stream.images - 1, min(MEASURED, stream.images)).round().astype(np.int64))
    return Stream(stream.shelf, recipe.data, seed=0, share=stream.share, training=False, rows=rows)


@torch.no_grad()
def evaluate(engine: Engine, source: Stream, codebook: int, folder: Path | None) -> dict[str, float]:
    """PSNR and the use of the codebook over all images, on any number of ranks; a picture into ``folder``."""
    engine.train(False)
    counts = torch.zeros(codebook, dtype=torch.float64, device=engine.device)
    sums = torch.zeros(2, dtype=torch.float64, device=engine.device)  # PSNR, images
    shown: tuple[Tensor, Tensor] | None = None
    with closing(source.once()) as batches:  # type: ignore[type-var]
        for _, batch in placed(batches, engine.device):
            made = engine(batch, mode="metrics")
            real = batch.numbers >= 0
            tokens = made["tokens"][real].flatten()
            counts += torch.bincount(tokens, minlength=codebook)
            sums += torch.stack([made["psnr"][real].double().sum(), real.double().sum()])
            if shown is None:
                shown = batch.pixels[:PICTURES].cpu(), (made["colours"][:PICTURES] * 255).round().byte().cpu()
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(counts)
        dist.all_reduce(sums)
    engine.train()
    if folder is not None and shown is not None:
        with going_on_without(str(folder / "reconstructions.png")):
            _draw(*shown, folder / "reconstructions.png")
    share = counts / counts.sum()
    surprise = -(share * torch.log(share.clamp(min=1e-300))).sum()
    return {
        "psnr": float(sums[0] / sums[1]),
        "perplexity": float(surprise.exp()),
        "used": float((counts > 0).double().mean()),
    }


def _draw(originals: Tensor, made: Tensor, path: Path) -> None:
    """Originals above, what is left of them after tokens below; [B, C, H, W] uint8."""
    rows = [
        torch.cat([torch.nn.functional.pad(image, (2, 2, 2, 2), value=255) for image in part], 2)
        for part in (originals, made)
    ]
    page = torch.cat(rows, 1)
    page = (page.expand(3, -1, -1) if len(page) == 1 else page[:3]).permute(1, 2, 0).contiguous()
    scale = max(1, round(112 / originals.shape[-2]))
    picture = Image.fromarray(page.numpy())
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(path)
