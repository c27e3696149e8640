"""Pretrain on shards, writing what every step saw; die by SIGKILL in the middle of a step if asked to.

Arguments: SHARDS RUN LOG STEP (of the death; -1: live).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.data.batch import Batch
from mae_pipe.masking import Mask
from mae_pipe.pretraining import pretrain
from mae_pipe.rng import Rng
from mae_pipe.seeding import key


def chosen() -> recipe.Pretrain:
    """A tiny run of 12 steps that saves every 3, with accumulation and drop path."""
    return recipe.Pretrain(
        data=recipe.Data(size=16, global_batch=8, micro_batch=4, workers=2),
        encoder=recipe.EncoderShape(width=32, depth=2, heads=2, patch=4, drop_path=0.2),
        decoder=recipe.DecoderShape(width=16, depth=1, heads=2),
        optimizer=recipe.Optimizer(base_lr=0.05),
        schedule=recipe.Schedule(epochs=4, warmup_epochs=1),
        engine=recipe.EngineChoice(zero=1, precision="fp32"),
        saving=recipe.Saving(every_epochs=1, background=False),  # what dies at a step has the last one saved
        logging=recipe.Logging(every_steps=1, pictures_every_epochs=2),
    )


def main() -> None:
    shards, run, log, death = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    mae, catalog = chosen(), Catalog()
    sampler = catalog.build("mask", "random", {})

    def seen(step: int, batch: Batch, loss: torch.Tensor) -> None:
        scores = sampler.scores(batch.pixels, _grid(mae), Rng(key(mae.seed, "mask"), batch.positions))
        hidden = Mask.from_scores(scores, mae.mask.ratio).hidden.tolist()
        row = {"step": step, "numbers": batch.numbers.tolist(), "hidden": hidden, "loss": float(loss).hex()}
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if step == death:
            os.kill(os.getpid(), signal.SIGKILL)

    pretrain(mae, shards, run, catalog=catalog, seen=seen)


def _grid(mae: recipe.Pretrain) -> object:
    from mae_pipe.tasks import view_of

    return view_of(mae.data, mae.encoder).grid


if __name__ == "__main__":
    main()
