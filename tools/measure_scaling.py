"""``mae-pipe plan``'s time of a step on two processes beside the measured one: ``measure_scaling.py SHARDS``.

Measures on this machine's processor, a thread a process: images a second of one process by itself, GB a second that
two send each other (a large sum over gloo), and images a second of both together. ``plan`` is given the first two, and
its third is compared; with every number of micro-batches in a step, as these decide how much there is to say.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

MAE_PIPE = [sys.executable, "-m", "mae_pipe"]
RECIPE = "mae_vit_base_patch16"
SUM = """
import os, statistics, sys, time, torch, torch.distributed as dist
dist.init_process_group("gloo")
numbers, seconds = torch.ones(25_000_000), []
for _ in range(9):
    dist.barrier(); begun = time.perf_counter(); dist.all_reduce(numbers); seconds.append(time.perf_counter() - begun)
if dist.get_rank() == 0:
    print(numbers.nbytes / statistics.median(seconds) / 1e9)  # a ring of two sends each byte once
dist.destroy_process_group()
"""


def keys_of(arguments: argparse.Namespace, world: int, accumulation: int) -> list[str]:
    """What is set beside the recipe."""
    chosen = {
        "encoder.depth": arguments.depth, "engine.zero": arguments.zero, "data.workers": 1,
        "data.micro_batch": arguments.micro_batch, "data.global_batch": arguments.micro_batch * world * accumulation,
    }  # fmt: skip
    return [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]


def rate(arguments: argparse.Namespace, images: int, world: int, accumulation: int) -> float:
    """Images a second of a run, the median over its steps but for the first ones."""
    batch = arguments.micro_batch * world * accumulation
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        command = [*MAE_PIPE, "pretrain", RECIPE, "--shards", arguments.shards, "--out", str(out)]
        command += ["--nproc", str(world), *keys_of(arguments, world, accumulation)]
        for key, value in {
            "schedule.epochs": arguments.steps * batch / images, "schedule.warmup_epochs": 0, "logging.every_steps": 1,
            "logging.pictures_every_epochs": 1e6, "saving.every_epochs": 1e6,
        }.items():  # fmt: skip
            command += ["--set", f"{key}={value}"]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return float(statistics.median(row["images_per_second"] for row in rows[4:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("shards")
    parser.add_argument("--zero", type=int, default=1)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--accumulation", type=int, nargs="+", default=[1, 4])
    given = parser.parse_args()
    manifest = json.loads(Path(given.shards, "manifest.json").read_text())
    images = sum(shard["images"] for shard in manifest["splits"]["train"]["shards"])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "sum.py")
        script.write_text(SUM)
        said = subprocess.run([*torchrun, str(script)], check=True, capture_output=True, text=True).stdout
    link = float(said.splitlines()[-1])
    print(f"two processes send each other {link:.2f} GB/s")
    for accumulation in given.accumulation:
        alone, both = (rate(given, images, world, accumulation) for world in (1, 2))
        keys = keys_of(given, 2, accumulation)
        told = [*MAE_PIPE, "plan", RECIPE, "--device", "cpu", "--gpus", "2", "--json", *keys]
        told += ["--images-per-second", str(alone), "--link", str(link)]
        plan = json.loads(subprocess.run(told, check=True, capture_output=True).stdout)
        planned = next(one["images_per_second"] for one in plan["scaling"] if one["world"] == 2)
        print(
            f"ZeRO {given.zero}, {accumulation} micro-batches of {given.micro_batch}: alone {alone:.2f} images/s, two "
            f"{both:.2f} measured, {planned:.2f} planned: {planned / both - 1:+.0%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
