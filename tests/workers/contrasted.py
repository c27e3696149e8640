"""MoCo v3 on shards in legs: by one rank and by two, stopped and gone on, in float32 and bfloat16.

Arguments: SHARDS OUT; every leg leaves a run folder of its name in OUT.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from mae_pipe import launch, recipe
from mae_pipe.catalog import Catalog
from mae_pipe.data.batch import Batch
from mae_pipe.engine.library import deepspeed
from mae_pipe.errors import Stopped
from mae_pipe.pretraining import pretrain
from tests.workers import forked

# Plain steps for what is compared between ranks: AdamW makes whole steps of gradients that are only rounding. And small
# ones: at 0.2 batch norm over eight images lets rounding grow to 1e-5 or, by the processor, 3e-4 in nine steps.
SGD: dict[str, Any] = {"name": "sgd", "base_lr": 0.05}
ADAMW: dict[str, Any] = {"name": "adamw", "base_lr": 0.02, "decay_all": True}
LEGS: tuple[tuple[str, int, dict[str, Any], dict[str, Any], int | None], ...] = (
    ("one", 1, {"precision": "fp32"}, SGD, None),
    ("two", 2, {"precision": "fp32", "zero": 1}, SGD, None),
    ("two at ZeRO 2", 2, {"precision": "fp32", "zero": 2}, SGD, None),
    ("whole", 1, {"precision": "bf16"}, ADAMW, None),
    ("gone on", 1, {"precision": "bf16"}, ADAMW, 4),
    ("gone on", 1, {"precision": "bf16"}, ADAMW, None),
)
STEPS = 9


def chosen(engine: dict[str, Any], optimizer: dict[str, Any]) -> recipe.Pretrain:
    """9 steps of 8 of the 24 images, which are all compared: 8 of one rank at once, or 4 of two."""
    return recipe.Pretrain(
        method=recipe.Chosen(name="moco_v3", options={"dim": 16, "hidden": 32, "momentum": 0.9}),
        data=recipe.Data(size=16, global_batch=8, micro_batch=8, workers=1),
        encoder=recipe.EncoderShape(width=32, depth=2, heads=2, patch=4),
        optimizer=recipe.Optimizer(**optimizer),
        schedule=recipe.Schedule(epochs=3, warmup_epochs=1),
        engine=recipe.EngineChoice(**engine),
        saving=recipe.Saving(every_epochs=100),
        logging=recipe.Logging(every_steps=1, pictures_every_epochs=100),
    )


def work(shards: Path, run: Path, engine: dict[str, Any], optimizer: dict[str, Any], last: int | None) -> None:
    """What a rank does; ``last``: the step at which it is asked to stop."""

    def seen(step: int, batch: Batch, loss: torch.Tensor) -> None:
        assert batch.pixels.shape == (8 // launch.place().world, 2, 3, 16, 16)
        if last is not None and step + 1 == last:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        pretrain(chosen(engine, optimizer), shards, run, catalog=Catalog(), seen=seen)
    except Stopped:
        assert last is not None


def main() -> None:
    shards, out = map(Path, sys.argv[1:])
    deepspeed()
    for name, world, engine, optimizer, last in LEGS:
        codes = forked.end(forked.start(world, work, shards, out / name, engine, optimizer, last), 100)
        if any(codes):
            sys.exit(f"the ranks of {name!r} ended with {codes}")


if __name__ == "__main__":
    main()
