"""Runs of which one loss or gradient is not finite, on two forked ranks.

Arguments: OUT. Writes OUT/CASE/..., a run folder each, and OUT/codes.json: the exit codes of the ranks.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from mae_pipe import launch, recipe
from mae_pipe.data.batch import Batch
from mae_pipe.data.order import Share
from mae_pipe.engine import Engine
from mae_pipe.engine.library import deepspeed
from mae_pipe.errors import MaePipeError
from mae_pipe.journal import Journal
from mae_pipe.live import Live
from mae_pipe.optim import Plan, parameter_groups
from mae_pipe.runs import Run
from mae_pipe.trainer import train
from tests.workers import forked
from tests.workers.stages import GLOBAL, MICRO, Noise, chosen

BAD = 5 * GLOBAL + 9  # the position of the image that is bad, in step 6
STEPS = 12
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {  # how, ZeRO stage, [faults]
    "skip": ("added nan", 1, {}),
    "skip at 2": ("inf", 2, {}),
    "skip at 3": ("gradient", 3, {}),
    "rollback": ("nan", 3, {"nonfinite": "rollback"}),
    "stop": ("nan", 1, {"nonfinite": "stop"}),
}


class Poisoned(torch.nn.Module):
    """A linear autoencoder of 8 pixels that one image, or every one from there on, spoils in one of several ways."""

    def __init__(self, how: str, *, to_the_end: bool = False) -> None:
        super().__init__()
        self.how, self.to_the_end = how, to_the_end
        self.line = torch.nn.Linear(8, 8, bias=False)
        torch.nn.init.eye_(self.line.weight)

    def forward(self, batch: Batch) -> torch.Tensor:
        pixels = batch.pixels.flatten(1)[:, :8].to(self.line.weight.dtype) / 255
        loss = (self.line(pixels).float() - 0.5 * pixels.float()).square().mean()
        if not (batch.positions >= BAD if self.to_the_end else batch.positions == BAD).any():
            return loss
        if self.how == "gradient":  # the root of 0 is 0, and its slope infinite
            return loss + (0 * self.line.weight.float()).sum().sqrt()
        return {"nan": loss * torch.nan, "inf": loss + torch.inf, "added nan": loss + torch.nan}[self.how]


def go(
    folder: Path,
    task: torch.nn.Module,
    *,
    zero: int = 1,
    precision: str = "fp32",
    faults: dict[str, Any] | None = None,
    end_at: int | None = None,
    passed: int = 0,
) -> list[tuple[int, list[int], str, list[float]]]:
    """Train 12 steps of 16 images in a run folder, from its newest checkpoint; one is made every 4 steps.

    Args:
        end_at: the step in which the run breaks off.
        passed: steps by which the stream is shifted.

    Returns:
        Of every micro-batch: step, positions, loss, weights before the step.
    """
    here = launch.join()
    mae = chosen({"zero": zero}).model_copy(
        update={
            "schedule": recipe.Schedule(epochs=STEPS / 10, warmup_epochs=0.1),
            "engine": recipe.EngineChoice(zero=zero, precision=precision, persistence_threshold=0),  # type: ignore[arg-type]
            "optimizer": recipe.Optimizer(base_lr=0.05, weight_decay=0.0),
            "saving": recipe.Saving(keep_last=9),
        }
    )
    plan, run = Plan.of(mae, 10 * GLOBAL, here.world), Run(folder, rank=here.rank)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    engine = Engine(task, parameter_groups(task.named_parameters(), weight_decay=0.0), mae, micro_batch=MICRO)
    saver = run.saver(engine, mae, plan, lambda archive: None)
    newest = run.on_rank_0(run.newest)
    start = 0 if newest is None else run.restore(engine, newest)
    journal = Journal(folder, active=here.rank == 0)
    journal.cut(start)
    found: list[tuple[int, list[int], str, list[float]]] = []
    weights: list[torch.Tensor] = []

    def look() -> None:
        weights.append(engine.weights().get("line.weight", torch.zeros(0)))  # all of it on rank 0

    def restore() -> int | None:
        step = run.go_back(engine, saver)
        look()
        return step

    look()

    def seen(step: int, batch: Batch, loss: torch.Tensor) -> None:
        found.append((step + 1, batch.positions.tolist(), float(loss.detach()).hex(), weights[-1].flatten().tolist()))
        if step + 1 == end_at:
            raise KeyboardInterrupt

    class Shifted(Noise):
        def batches(self, start: int = 0) -> Any:
            return super().batches(start + passed * GLOBAL)

    try:
        with Live("test", plan.steps, active=False) as live:
            train(
                engine,
                Shifted(Share(here.rank, here.world, MICRO)),
                plan,
                journal=journal,
                live=live,
                seed=0,
                start=start,
                log_every=2,
                save_every=4,
                save=saver.save,
                finish=saver.finish,
                seen=seen,
                after_step=lambda step: look(),
                faults=recipe.FaultChoice(**(faults or {})),
                restore=restore,
                key_of=lambda number: f"image {number}",
            )
    except KeyboardInterrupt:
        saver.finish()
    finally:
        engine.close()
    return found


def work(folder: Path, how: str, zero: int, faults: dict[str, Any]) -> None:
    """What a rank does; ends as the command would."""
    try:
        found = go(folder, Poisoned(how), zero=zero, faults=faults)
    except MaePipeError as error:
        (folder / f"said-{launch.place().rank}").write_text(str(error))
        os._exit(error.exit_code)
    (folder / f"found-{launch.place().rank}.json").write_text(json.dumps(found))


def main() -> None:
    deepspeed()
    out = Path(sys.argv[1])
    codes = {name: forked.end(forked.start(2, work, out / name, *case), 60) for name, case in CASES.items()}
    (out / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main()
