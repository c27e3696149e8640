"""Engines of all kinds train the tiny model for some steps; rank 0 writes losses and weights. In ranks, or alone.

python stages.py OUT '{"a name": {"zero": 3, ...}, ...}'
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from mae_pipe import launch, recipe
from mae_pipe.catalog import Catalog
from mae_pipe.data.batch import Batch
from mae_pipe.data.order import Share
from mae_pipe.engine import Engine
from mae_pipe.journal import Journal
from mae_pipe.live import Live
from mae_pipe.optim import Plan, parameter_groups
from mae_pipe.tasks import MaskedAutoencoder
from mae_pipe.trainer import train

GLOBAL, MICRO, IMAGES = 16, 4, 160
NUMBERS = {"lars": {"base_lr": 1.0, "trust": 0.1}, "sgd": {"base_lr": 1.0}}  # with which a few steps show


def chosen(engine: dict[str, Any]) -> recipe.Pretrain:
    """A model small enough for seconds, with accumulation and clipping; keys of [engine], and "optimizer"."""
    engine = {"precision": "fp32", "persistence_threshold": 0, **engine}
    name = engine.pop("optimizer", "adamw")
    return recipe.Pretrain(
        data=recipe.Data(size=16, global_batch=GLOBAL, micro_batch=MICRO),
        encoder=recipe.EncoderShape(width=32, depth=2, heads=2, patch=4),
        decoder=recipe.DecoderShape(width=16, depth=1, heads=2),
        optimizer=recipe.Optimizer(**{"name": name, "base_lr": 0.05, "clip": 0.5, **NUMBERS.get(name, {})}),
        schedule=recipe.Schedule(epochs=0.8, warmup_epochs=0.2),
        engine=recipe.EngineChoice(**engine),
    )


def task_of(mae: recipe.Pretrain) -> MaskedAutoencoder:
    return MaskedAutoencoder.from_recipe(mae, Catalog())


def groups_of(task: MaskedAutoencoder) -> list[dict]:
    """Weight decay and, so that group settings count, layer decay on the embeddings."""
    return parameter_groups(
        task.named_parameters(), weight_decay=0.05, lr_scale=lambda name: 0.5 if "patch_embed" in name else 1.0
    )


class Noise:
    """A stream of noise images, a function of the position as the real one."""

    def __init__(self, share: Share) -> None:
        self.share = share

    def batches(self, start: int = 0) -> Iterator[Batch]:
        while True:
            yield noise(self.share.positions(start))
            start += self.share.advance


def noise(positions: np.ndarray) -> Batch:
    images = [torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(int(p))) for p in positions]
    none = torch.full((len(positions),), -1)
    return Batch(torch.stack(images).to(torch.uint8), none, torch.from_numpy(positions), torch.from_numpy(positions))


def losses_of(choice: dict[str, Any], folder: Path) -> list[float]:
    """The global mean loss of each step."""
    return trained(choice, folder)[0]


def trained(choice: dict[str, Any], folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The global mean loss of each step, and on rank 0 the float32 weights after the last."""
    mae = chosen(choice)
    here = launch.join()
    plan = Plan.of(mae, IMAGES, here.world)
    task = task_of(mae)
    engine = Engine(task, groups_of(task), mae, micro_batch=plan.micro_batch)
    assert engine.stage == mae.engine.zero
    found: list[float] = []
    waiting: list[torch.Tensor] = []

    def seen(step: int, batch: Batch, loss: torch.Tensor) -> None:
        waiting.append(loss.detach())
        if len(waiting) == plan.accumulation:
            mean = torch.stack(waiting).mean()
            waiting.clear()
            if here.world > 1:
                dist.all_reduce(mean)
            found.append(float(mean) / here.world)

    with Live("test", plan.steps, active=False) as live:
        train(
            engine,
            Noise(Share(here.rank, here.world, plan.micro_batch)),
            plan,
            journal=Journal(folder, active=False),
            live=live,
            seed=0,
            save_every=10**9,
            save=lambda step: None,
            seen=seen,
        )
    weights = engine.weights()
    engine.close()
    return found, weights


def allow_fp16() -> None:
    """Let DeepSpeed compute in float16 on processors that do it slowly: PyTorch can."""
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True


def main() -> None:
    allow_fp16()
    out = Path(sys.argv[1])
    choices = json.loads(sys.argv[2])
    found = {name: trained(choice, out.parent) for name, choice in choices.items()}
    compiled = any(choice.get("compile") for choice in choices.values())
    assert compiled or "torch._inductor.compile_fx" not in sys.modules  # it takes 2 s to import
    if launch.place().rank == 0:
        torch.save(found, out)


if __name__ == "__main__":
    main()
