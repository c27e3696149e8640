"""How long a checkpoint keeps training waiting, ours against DeepSpeed's own, in one run on one model.

A round saves once in each way, in turns, after one that does not count. "waits" is how long the call takes, "whole"
until the files are synced; DeepSpeed's own are neither synced nor hashed. Ours are checked (sha256) and loaded at the
end, as a resumed run does.

    python tools/bench_saving.py --rounds 5
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.checkpoints import check
from mae_pipe.data.batch import Batch
from mae_pipe.engine import Engine
from mae_pipe.optim import Plan, parameter_groups
from mae_pipe.runs import Run
from mae_pipe.tasks import MaskedAutoencoder


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recipe", default="mae_vit_base_patch16")
    parser.add_argument("--zero", type=int, default=1, choices=(1, 2, 3))
    parser.add_argument("--out", type=Path, help="folder to write into; default: a temporary one")
    options = parser.parse_args()

    chosen = recipe.load(options.recipe, [f"engine.zero={options.zero}", "data.micro_batch=1", "data.global_batch=1"])
    assert isinstance(chosen, recipe.Pretrain)
    task = MaskedAutoencoder.from_recipe(chosen, Catalog())
    parameters = sum(parameter.numel() for parameter in task.parameters())
    engine = Engine(task, parameter_groups(task.named_parameters(), weight_decay=0.05), chosen, micro_batch=1)
    none = torch.zeros(1, dtype=torch.int64)
    pixels = torch.randint(0, 256, (1, 3, *chosen.data.sides), dtype=torch.uint8)
    engine.backward(engine(Batch(pixels, none, none, none).to(engine.device)))
    engine.step(1e-6)

    folder = Path(tempfile.mkdtemp(dir=options.out))
    run = Run(folder)
    run.checkpoints.mkdir()
    plan = Plan.of(chosen, 1000, 1)
    savers = {}
    for name in ("behind", "in front"):
        saving = recipe.Saving(keep_last=1, background=name == "behind")
        savers[name] = run.saver(engine, chosen.model_copy(update={"saving": saving}), plan, lambda archive: None)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in (*savers, "DeepSpeed's own")}
    try:
        for step in range(options.rounds + 1):
            for name, saver in savers.items():
                waits = timed(partial(saver.save, step))
                found[name].append((waits, waits + timed(saver.finish)))
            with contextlib.redirect_stdout(io.StringIO()):
                own = partial(engine._engine.save_checkpoint, str(folder / "own"), tag="x", save_latest=False)
                found["DeepSpeed's own"].append((timed(own), float("nan")))
            shutil.rmtree(folder / "own")
            if step == 0:
                for pairs in found.values():
                    pairs.clear()
        newest = next(run.checkpoints.iterdir())
        size = sum(path.stat().st_size for path in newest.iterdir())
        checked = timed(lambda: check(newest))
        loaded = timed(lambda: run.restore(engine, newest))
    finally:
        shutil.rmtree(folder)
    print(
        f"{options.recipe}, {parameters / 1e6:.1f} M parameters, ZeRO {options.zero}, {engine.precision}, one process; "
        f"{size / 2**20:,.0f} MiB a checkpoint; {options.rounds} rounds; seconds: min median max"
    )
    for name, pairs in found.items():
        for what, numbers in zip(("waits", "whole"), zip(*pairs, strict=True), strict=True):
            if numbers[0] == numbers[0]:
                spread = f"{min(numbers):7.2f} {statistics.median(numbers):7.2f} {max(numbers):7.2f}"
                print(f"{name:16} {what} {spread}")
    print(f"checked in {checked:.2f}, loaded in {loaded:.2f}; torch {torch.__version__}")
    engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
