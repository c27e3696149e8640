"""Every world, ZeRO stage and precision saves a checkpoint and loads those of all others; writes what it found.

Arguments: OUT SETTING... (a setting is "world.stage.precision", ".key=value" of [engine], and ".ema" for an average).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from mae_pipe import launch, recipe
from mae_pipe.checkpoints import Archive
from mae_pipe.data.order import Share
from mae_pipe.engine import Engine
from mae_pipe.engine.library import deepspeed
from mae_pipe.optim import Plan
from mae_pipe.runs import Run
from tests.workers import forked
from tests.workers.stages import Noise, chosen, groups_of, task_of

GLOBAL, BEFORE, AFTER = 24, 3, 2  # images and steps: 24 divides by 1, 2, 3 and micro-batches of 4
DECAY = 0.7  # of the average of the weights, in settings with "ema"


def setting(text: str) -> tuple[int, recipe.Pretrain]:
    world, stage, precision, *more = text.split(".")
    keys = dict(one.split("=") for one in more if one != "ema")
    mae = chosen({"zero": int(stage), "precision": precision, **keys})
    data = mae.data.model_copy(update={"global_batch": GLOBAL})
    return int(world), mae.model_copy(update={"data": data})


class Model:
    """The tiny model of ``stages`` in one setting."""

    def __init__(self, text: str, folder: Path) -> None:
        _, mae = setting(text)
        here = launch.join()
        self.plan = Plan.of(mae, 10 * GLOBAL, here.world)
        task = task_of(mae)
        decay = DECAY if text.endswith(".ema") else 0.0
        self.engine = Engine(task, groups_of(task), mae, micro_batch=self.plan.micro_batch, average=decay)
        self.run = Run(folder, rank=here.rank)
        self.run.checkpoints.mkdir(parents=True, exist_ok=True)
        self.saver = self.run.saver(self.engine, mae, self.plan, lambda archive: None)
        self.here = here

    def train(self, first: int, last: int) -> list[float]:
        """The global mean loss of each step."""
        found = []
        batches = Noise(Share(self.here.rank, self.here.world, self.plan.micro_batch)).batches(first * GLOBAL)
        for step in range(first, last):
            total = torch.zeros(())
            for _ in range(self.plan.accumulation):
                loss = self.engine(next(batches))
                self.engine.backward(loss / self.plan.accumulation)
                total += loss.detach() / self.plan.accumulation / self.here.world
            assert self.engine.step(self.plan.lr(step))
            if self.here.world > 1:
                dist.all_reduce(total)
            found.append(float(total))
        return found

    def save(self, step: int) -> None:
        self.saver.save(step)
        self.saver.finish()

    def close(self) -> None:
        self.engine.close()


def work(phase: str, out: Path, settings: list[str]) -> None:
    """What a rank does."""
    here = launch.place()
    found = {}
    for mine in (text for text in settings if setting(text)[0] == here.world):
        if phase == "save":
            model = Model(mine, out / mine)
            model.train(0, BEFORE)
            model.save(BEFORE)
            found[mine] = model.train(BEFORE, BEFORE + AFTER)
            model.close()
            continue
        for other in settings:
            model = Model(mine, out / f"{other}-to-{mine}")
            step = model.run.restore(model.engine, out / other / "checkpoints" / f"step-{BEFORE:07d}")
            model.save(step)
            found[f"{other}-to-{mine}"] = model.train(step, step + AFTER)
            model.close()
    if here.rank == 0:
        (out / f"{phase}.{here.world}.json").write_text(json.dumps(found))


def same(out: Path, settings: list[str]) -> dict[str, list[str]]:
    """For every pair the tensors that are not the same to the last bit after loading and saving."""
    found = {}
    for other in settings:
        was = Archive.of(out / other / "checkpoints" / f"step-{BEFORE:07d}")
        for mine in settings:
            now = Archive.of(out / f"{other}-to-{mine}" / "checkpoints" / f"step-{BEFORE:07d}")
            found[f"{other}-to-{mine}"] = [
                f"{kind} {name}" for kind, name in sorted(was.names) if not same_tensor(was, now, kind, name)
            ] + sorted(map(str, was.names ^ now.names))
            if was.record.numbers["optimizer_step"] != now.record.numbers["optimizer_step"]:
                found[f"{other}-to-{mine}"].append("optimizer_step")
    return found


def same_tensor(was: Archive, now: Archive, kind: str, name: str) -> bool:
    return torch.equal(was.whole(kind, name), now.whole(kind, name))


def main() -> None:
    out, settings = Path(sys.argv[1]), sys.argv[2:]
    deepspeed()
    for phase in ("save", "load"):
        for world in sorted({setting(text)[0] for text in settings}):
            if any(codes := forked.end(forked.start(world, work, phase, out, settings))):
                sys.exit(f"the ranks ended with {codes}")
    losses: dict[str, list[float]] = {}
    for file in out.glob("*.*.json"):
        losses |= json.loads(file.read_text())
    (out / "found.json").write_text(json.dumps({"losses": losses, "other": same(out, settings)}))


if __name__ == "__main__":
    main()
