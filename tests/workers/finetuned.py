"""One finetuning with all its noise, by one rank and by two that also do all else in another way.

Arguments: RUN OUT. The ranks are forked from a process that has imported all and begun nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mae_pipe import launch, recipe
from mae_pipe.catalog import Catalog
from mae_pipe.downstream import downstream
from mae_pipe.engine.library import deepspeed
from tests.workers import forked

NOISE: dict[str, Any] = {
    "drop_path": 0.1,
    "dropout": 0.1,
    "label_smoothing": 0.1,
    "mixing": recipe.Mixing(mixup=0.8, cutmix=1.0),
}
PIXELS: dict[str, Any] = {"randaugment": "rand-m9-mstd0.5-inc1", "erase": 0.25, "crop_scale": (0.5, 1.0)}


def chosen(workers: str = "thread", **engine: Any) -> recipe.Downstream:
    """8 steps of 12 images, 3 at once: of one rank 4 micro-batches, of two ranks 2 each."""
    data = {"size": 16, "global_batch": 12, "micro_batch": 3, "workers": 1, "worker_kind": workers, **PIXELS}
    return recipe.Downstream(
        task="finetune",
        data=recipe.Data(**data),
        optimizer=recipe.Optimizer(base_lr=0.02),
        schedule=recipe.Schedule(epochs=4, warmup_epochs=1),
        engine=recipe.EngineChoice(precision="fp32", **engine),
        saving=recipe.Saving(every_epochs=100),
        logging=recipe.Logging(every_steps=1),
        train_split="train",
        eval_split="train",
        **NOISE,
    )


def work(run: Path, out: Path) -> None:
    """What a rank does."""
    world = launch.place().world
    made = chosen() if world == 1 else chosen("process", zero=3, persistence_threshold=0, checkpoint_blocks=2)
    downstream(run, made, catalog=Catalog(), out=out / str(world))


def main() -> None:
    run, out = map(Path, sys.argv[1:])
    deepspeed()
    for world in (1, 2):
        codes = forked.end(forked.start(world, work, run, out))
        if any(codes):
            sys.exit(f"the ranks ended with {codes}")


if __name__ == "__main__":
    main()
