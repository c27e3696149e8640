"""``mae-pipe tune``: the micro-batch and data workers that give the most images a second on this machine.

Each candidate is a real, short `mae-pipe pretrain` in a process of its own, in a temporary folder.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_pipe import recipe as recipes
from mae_pipe.data.manifest import Manifest
from mae_pipe.errors import TrainingError
from mae_pipe.planning.fit import divisors
from mae_pipe.provenance import as_toml
from mae_pipe.recipe import Pretrain

STEPS = 6  # of a candidate; the first two are not counted
LONGEST = 600.0  # seconds of one candidate
ALL_BLOCKS = 10_000  # more than there are: all
CHOICES = 5  # micro-batches that are tried


@dataclass(frozen=True)
class Candidate:
    """What is tried."""

    micro_batch: int
    workers: int
    checkpoint_blocks: int

    def of(self, recipe: Pretrain) -> dict[str, Any]:
        """The recipe's values with this in them."""
        values = recipe.model_dump(mode="json")
        values["data"] |= {"micro_batch": self.micro_batch, "workers": self.workers}
        values["engine"] |= {"checkpoint_blocks": self.checkpoint_blocks}
        return values


@dataclass(frozen=True)
class Tried:
    """What became of a candidate.

    Attributes:
        rates: images a second, of every step but the first two.
        memory: bytes of the process at its peak.
        wait_share: of the time, for data; the median.
        trouble: why it gave no numbers; empty where it did.
    """

    candidate: Candidate
    rates: tuple[float, ...] = ()
    memory: int = 0
    wait_share: float = 0.0
    trouble: str = ""
    out_of_memory: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.rates) if self.rates else 0.0


def tune(
    recipe: Pretrain,
    shards: Path,
    *,
    split: str,
    minutes: float,
    plugins: tuple[Path, ...] = (),
    told: Callable[[Tried], None] = lambda tried: None,
) -> tuple[Pretrain, Candidate]:
    """The recipe with the best values in it, and these.

    Micro-batches first, from the largest to the smallest, then workers at the best one. Blocks are recomputed only
    where the recipe's own micro-batch runs out of memory. After ``minutes`` no other candidate begins.

    Raises:
        TrainingError: no candidate could train.
    """
    images = Manifest.load(shards).split(split).images
    until = time.monotonic() + minutes * 60
    done: list[Tried] = []

    def attempt(candidate: Candidate) -> Tried:
        found = _run(recipe, candidate, shards, split, images, plugins)
        done.append(found)
        told(found)
        return found

    def go_on() -> bool:
        return not done or time.monotonic() < until

    workers, blocks = recipe.data.workers, recipe.engine.checkpoint_blocks
    for micro in _micro_batches(recipe):
        if go_on() and attempt(Candidate(micro, workers, blocks)).out_of_memory and blocks == 0 and go_on():
            attempt(Candidate(micro, workers, ALL_BLOCKS))
    best = max(done, key=lambda tried: tried.median)
    for count in _workers(workers):
        if best.rates and go_on():
            attempt(Candidate(best.candidate.micro_batch, count, best.candidate.checkpoint_blocks))
    best = max(done, key=lambda tried: tried.median)  # of equals the first
    if not best.rates:
        why = done[-1].trouble
        raise TrainingError(f"none of {len(done)} settings could train on this machine; the last said: {why}")
    tuned = recipes.parse(best.candidate.of(recipe), "tuned", task="pretrain")
    assert isinstance(tuned, Pretrain)
    return tuned, best.candidate


def _micro_batches(recipe: Pretrain) -> list[int]:
    """Divisors of the global batch, the recipe's own first, each at most half of the one before."""
    chosen: list[int] = []
    for size in divisors(recipe.data.global_batch, recipe.data.micro_batch):
        if not chosen or size * 2 <= chosen[-1]:
            chosen.append(size)
    return chosen[:CHOICES]


def _workers(given: int) -> Iterator[int]:
    cores = len(os.sched_getaffinity(0))
    yield from sorted({1, max(1, cores // 2), cores, 2 * cores} - {given})


def _run(
    recipe: Pretrain, candidate: Candidate, shards: Path, split: str, images: int, plugins: tuple[Path, ...]
) -> Tried:
    """Train some steps; never raises for what the candidate does."""
    with tempfile.TemporaryDirectory(prefix="mae-pipe-tune-") as place:
        short, out = Path(place) / "candidate.toml", Path(place) / "run"
        short.write_text(as_toml(_shortened(recipe, candidate, images)), encoding="utf-8")
        command = [sys.executable, "-m", "mae_pipe", "pretrain", str(short), "--shards", str(shards), "--out", str(out)]
        command += ["--split", split, *(w for p in plugins for w in ("--plugin", str(p)))]
        with (Path(place) / "said").open("w+", encoding="utf-8", errors="replace") as said:
            running = subprocess.Popen(command, stdout=said, stderr=said)  # noqa: S603 (our own command)
            code, memory = _wait(running)
            said.seek(0)
            last = (said.read().strip().splitlines() or ["it said nothing"])[-1]
        rows = _rows(out / "metrics.jsonl") if code == 0 else []
    if len(rows) < 3:
        lost = code == -9 or "out of memory" in last.lower() or "can't allocate memory" in last.lower()
        return Tried(candidate, trouble="out of memory" if lost else last, out_of_memory=lost)
    kept = rows[2:]  # the first ones also open files and import
    return Tried(
        candidate,
        tuple(row["images_per_second"] for row in kept),
        memory,
        statistics.median(row["wait_share"] for row in kept),
    )


def _shortened(recipe: Pretrain, candidate: Candidate, images: int) -> Pretrain:
    """A run of two micro-batches a step that ends soon, and draws and evaluates nothing on the way."""
    values = candidate.of(recipe)
    values["data"]["global_batch"] = 2 * candidate.micro_batch
    values["logging"] = {"every_steps": 1, "pictures_every_epochs": 1e9}
    values["monitor"] = {}
    values["saving"] = {"every_epochs": 1e9, "keep_last": 1}
    values["schedule"] |= {"epochs": STEPS * 2 * candidate.micro_batch / images, "warmup_epochs": 0.0}
    made = recipes.parse(values, "a candidate", task="pretrain")
    assert isinstance(made, Pretrain)
    return made


def _wait(running: subprocess.Popen[bytes] | subprocess.Popen[str]) -> tuple[int, int]:
    """Exit code, negative for a signal, and the most bytes that were resident."""
    latest = time.monotonic() + LONGEST
    while True:
        pid, status, used = os.wait4(running.pid, os.WNOHANG)
        if pid:
            running.returncode = os.waitstatus_to_exitcode(status)
            return running.returncode, used.ru_maxrss * 1024
        if time.monotonic() > latest:
            running.terminate()
            latest += LONGEST
        time.sleep(0.05)


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["kind"] == "train"]
