"""Images a second of one pretraining step, ours against others', and its share of what the machine can multiply.

Forward, backward and AdamW's step of MAE at 224 pixels, ratio 0.75, random weights; weights are bfloat16, or as
``--precision`` says. Each contestant has a process of its own, as its user would have it. They take turns, one at a
time, so that a machine that is busy with other things slows all alike; ratios are of turns in the same round.
``--cpu-time --threads 1`` is steadier still. The rate of a large product, 4096 x 1024 x 4096, is a contestant too.

    python tools/bench_step.py --rounds 7
    python tools/bench_step.py --rounds 7 --only "mae-pipe, Engine" "mae-pipe, float32 masters"
    python tools/bench_step.py --device cuda --batch 256 --steps 5
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from step_contestants import CONTESTANTS, RECIPES, SIZE, Settings, Step

FIRST = ("mae-pipe", "Hugging Face, sdpa", "Hugging Face, eager", "timm blocks, explicit")
PRODUCT = "product"


def compete(name: str, settings: Settings, options: argparse.Namespace, line: Connection) -> None:
    """A contestant's process: one round for every message, answered by its seconds and the most memory so far, GB."""
    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    step = product(settings) if name == PRODUCT else CONTESTANTS[name](settings)
    clock = time.process_time if options.cpu_time else time.perf_counter
    cuda = settings.device == "cuda"
    for _ in range(2):
        step()  # compilation and first allocations
    line.send((0.0, 0.0))
    while line.recv():
        gc.collect()
        if cuda:
            torch.cuda.synchronize()
        begin = clock()
        for _ in range(options.steps):
            step()
        if cuda:
            torch.cuda.synchronize()
        seconds = (clock() - begin) / options.steps
        peak = torch.cuda.max_memory_allocated() if cuda else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        line.send((seconds, peak / 1e9))


def product_sides(device: str) -> tuple[int, int, int, int]:
    """Rows, inner side, columns; and how many make a step."""
    return (8192, 8192, 8192, 50) if device == "cuda" else (4096, 1024, 4096, 10)


def product(settings: Settings) -> Step:
    """A large product in the run's precision: what the machine can do at best."""
    import torch

    rows, inner, cols, times = product_sides(settings.device)
    dtype = torch.float32 if settings.precision == "fp32" else torch.bfloat16
    left = torch.randn(rows, inner, device=settings.device).to(dtype)
    right = torch.randn(cols, inner, device=settings.device).to(dtype)

    def step() -> None:
        for _ in range(times):
            torch.nn.functional.linear(left, right)

    return step


def textbook_flops(settings: Settings) -> int:
    """FLOPs of a step for one image by the formula: every block computes all its tokens; hidden patches are predicted.

    A product of n x k and k x m is 2 n k m; a backward pass is two forward ones, but for the pixels' gradient.
    """
    shape, small = settings.recipe.encoder, settings.recipe.decoder
    patches = (SIZE // shape.sides[0]) ** 2
    visible = int(patches * (1 - settings.recipe.mask.ratio))
    numbers = 3 * shape.sides[0] * shape.sides[1]

    def block(tokens: int, width: int, ratio: float) -> int:
        return int(2 * tokens * width * width * (4 + 2 * ratio)) + 4 * tokens**2 * width

    embedding: int = 2 * visible * numbers * shape.width
    forward = embedding + shape.depth * block(visible + 1, shape.width, shape.mlp_ratio)
    forward += 2 * (visible + 1) * shape.width * small.width + small.depth * block(
        patches + 1, small.width, small.mlp_ratio
    )
    forward += 2 * (patches - visible) * small.width * numbers
    return int(3 * forward - embedding)


def run(
    names: list[str], settings: Settings, options: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of a step in every round, and the most memory, of each."""
    context = multiprocessing.get_context("spawn")
    lines: dict[str, Connection] = {}
    processes = []
    for name in names:
        lines[name], other = context.Pipe()
        processes.append(context.Process(target=compete, args=(name, settings, options, other), daemon=True))
        processes[-1].start()
        other.close()
        lines[name].recv()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    memory: dict[str, float] = {}
    for number in range(options.rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:  # nobody is always first
            lines[name].send(True)
            taken, memory[name] = lines[name].recv()
            seconds[name].append(taken)
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    for name, process in zip(names, processes, strict=True):
        lines[name].send(False)
        process.join()
    return seconds, memory


def spread(numbers: list[float], digits: int = 2) -> str:
    """``min median max``."""
    return "".join(f"{number:9.{digits}f}" for number in (min(numbers), statistics.median(numbers), max(numbers)))


def processor() -> str:
    """The name of the machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1, help="steps a round")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--model", choices=list(RECIPES), default="base")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", choices=["bf16", "autocast", "fp32"], default="bf16")
    parser.add_argument("--no-optimizer", action="store_true", help="forward and backward alone")
    known = f"the contestants, the one that others are compared with first: {'; '.join(CONTESTANTS)}"
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), default=list(FIRST), metavar="NAME", help=known)
    parser.add_argument("--cpu-time", action="store_true", help="count a process's seconds; for a busy machine")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    settings = Settings(options.model, options.batch, options.device, options.precision, not options.no_optimizer)
    seconds, memory = run([*options.only, PRODUCT], settings, options)
    rows, inner, cols, times = product_sides(options.device)
    ceiling = [2e-9 * rows * inner * cols * times / s for s in seconds.pop(PRODUCT)]
    rates = {name: [options.batch / s for s in found] for name, found in seconds.items()}
    first = options.only[0]

    import torch

    from mae_pipe.catalog import Catalog
    from mae_pipe.costs import costs

    machine = torch.cuda.get_device_name() if options.device == "cuda" else f"{processor()}, {options.threads} threads"
    title = (
        f"{machine}; torch {version('torch')}, timm {version('timm')}, transformers {version('transformers')}; "
        f"ViT-{options.model}, {SIZE} px, batch {options.batch}, {options.precision}, forward + backward"
        f"{'' if options.no_optimizer else ' + AdamW'}; {options.rounds} rounds of {options.steps} steps, taking turns"
    )
    print(title)
    print(
        f"{'images/s' + (' of CPU time' if options.cpu_time else ''):34}{'min':>9}{'median':>9}{'max':>9}   memory, GB"
    )
    for name, found in rates.items():
        print(f"{name:34}{spread(found)}   {memory[name]:.2f}")
    for name in options.only[1:]:
        print(f"{'over ' + name:34}{spread([a / b for a, b in zip(rates[first], rates[name], strict=True)])}")
    print(f"{'GFLOP/s of a large product':34}{spread(ceiling, 1)}")
    report: dict[str, Any] = {"about": title, "images_per_second": rates, "memory_gb": memory, "product": ceiling}
    counts = {"computed": costs(settings.recipe, Catalog()).training, "textbook": textbook_flops(settings)}
    for kind, count in counts.items():
        shares = [100e-9 * count * rate / most for rate, most in zip(rates[first], ceiling, strict=True)]
        print(f"{f'% of it, {count / 1e9:.2f} GFLOP {kind}':34}{spread(shares, 1)}")
        report |= {f"share_{kind}": shares, f"gflop_{kind}": count / 1e9}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
