"""One run in legs, each on other ranks and at another ZeRO stage; every rank writes what every step saw.

Arguments: SHARDS RUN LOGS LEG... (a leg is "world.stage.last step"; at its last step it is asked to stop).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

from mae_pipe import launch, recipe
from mae_pipe.catalog import Catalog
from mae_pipe.data.batch import Batch
from mae_pipe.engine.library import deepspeed
from mae_pipe.errors import MaePipeError
from mae_pipe.pretraining import pretrain
from tests.workers import forked

STEPS = 12


def chosen(stage: int) -> recipe.Pretrain:
    """12 steps of the 24 images that there are, shared evenly by up to 3 ranks; it saves when it is asked to stop."""
    return recipe.Pretrain(
        data=recipe.Data(size=16, global_batch=24, micro_batch=4, workers=1),
        encoder=recipe.EncoderShape(width=32, depth=2, heads=2, patch=4),
        decoder=recipe.DecoderShape(width=16, depth=1, heads=2),
        optimizer=recipe.Optimizer(base_lr=0.02),
        schedule=recipe.Schedule(epochs=STEPS, warmup_epochs=1),
        engine=recipe.EngineChoice(zero=stage, precision="fp32", persistence_threshold=0),  # type: ignore[arg-type]
        saving=recipe.Saving(every_epochs=100),
        logging=recipe.Logging(every_steps=1, pictures_every_epochs=100),
    )


def work(shards: Path, run: Path, logs: Path, stage: int, last: int) -> None:
    """What a rank does; ends with the exit code of the command line."""
    here = launch.place()

    def seen(step: int, batch: Batch, loss: torch.Tensor) -> None:
        row = {"step": step, "positions": batch.positions.tolist(), "numbers": batch.numbers.tolist()}
        with (logs / f"{here.world}.{stage}.{here.rank}").open("a") as file:
            file.write(json.dumps({**row, "loss": float(loss)}) + "\n")
        if step + 1 == last and last < STEPS and here.rank == here.world - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        pretrain(chosen(stage), shards, run, catalog=Catalog(), seen=seen)
    except MaePipeError as error:
        if here.rank == 0:
            print(f"mae-pipe: {error}", file=sys.stderr)
        os._exit(error.exit_code)


def main() -> None:
    shards, run, logs = map(Path, sys.argv[1:4])
    logs.mkdir(parents=True)
    deepspeed()
    for leg in sys.argv[4:]:
        world, stage, last = map(int, leg.split("."))
        codes = forked.end(forked.start(world, work, shards, run, logs, stage, last))
        if set(codes) != {0 if last == STEPS else 75}:
            sys.exit(f"the ranks of leg {leg} ended with {codes}")


if __name__ == "__main__":
    main()
