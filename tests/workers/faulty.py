"""The fault matrix: a run is hit in the middle, goes on, and is compared with the one that nothing happened to.

Arguments: SHARDS OUT CASES SEED [KIND...]. Writes OUT/found.json: what went wrong, case by case, if anything did.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mae_pipe import launch, recipe, watchdog
from mae_pipe.catalog import Catalog
from mae_pipe.data.batch import Batch
from mae_pipe.engine.library import deepspeed
from mae_pipe.errors import Lost, MaePipeError, Stopped
from mae_pipe.pretraining import pretrain
from mae_pipe.tasks import MaskedAutoencoder
from tests.workers import forked
from tests.workers.journey import chosen as journey_chosen

STEPS = 12
KINDS = ("kill",) * 10 + ("kill in a save",) * 4 + ("signal",) * 2 + ("nan", "disk full", "corrupt", "corrupt")
PATIENT, HANG = 45.0, 90.0  # seconds after a fault by which a launcher ends the other ranks, and they must have ended
POISONED = 24 * 5 + 7  # the position in the stream whose loss is not a number, in step 5


@dataclass(frozen=True)
class Case:
    """What happens to which rank, when, and on how many ranks at which stage the run goes on."""

    number: int
    kind: str
    world: int
    stage: int
    rank: int
    moment: float  # share of the whole run's time, or of its file operations
    signal: int
    then: tuple[int, int]  # world, stage

    @property
    def elastic(self) -> bool:
        return self.then != (self.world, self.stage)


def cases(count: int, seed: int) -> list[Case]:
    dice = random.Random(seed)
    made = []
    for number in range(count):
        world, stage = dice.choice((1, 2)), dice.choice((1, 2, 3))
        same = number % 4 != 3
        then = (world, stage) if same else (dice.choice((1, 2, 3)), dice.choice((1, 2, 3)))
        what = signal.SIGTERM if dice.random() < 0.5 else signal.SIGUSR1
        kind = KINDS[number % len(KINDS)]
        made.append(Case(number, kind, world, stage, dice.randrange(world), dice.random(), what, then))
    return made


def chosen(stage: int) -> recipe.Pretrain:
    saving = recipe.Saving(every_epochs=2, keep_last=2)
    faults = recipe.FaultChoice(lost_seconds=10, hang_minutes=1)
    return journey_chosen(stage).model_copy(update={"saving": saving, "faults": faults})


def work(shards: Path, run: Path, log: Path, stage: int, poisoned: bool, before: Callable[[], None]) -> None:
    """What a rank does."""
    here = launch.place()
    before()
    if poisoned:
        _poison()

    def seen(step: int, batch: Batch, loss: torch.Tensor) -> None:
        row = {"step": step, "positions": batch.positions.tolist(), "numbers": batch.numbers.tolist()}
        with (log.parent / f"{log.name}.{here.rank}").open("a") as file:
            file.write(json.dumps({**row, "loss": float(loss).hex()}) + "\n")

    try:
        pretrain(chosen(stage), shards, run, catalog=Catalog(), seen=seen)
    except MaePipeError as error:
        if watchdog.leave(error):
            print(f"mae-pipe: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)


def _poison() -> None:
    whole = MaskedAutoencoder.forward

    def forward(self: MaskedAutoencoder, batch: Batch, mode: Any = "loss") -> Any:
        found = whole(self, batch, mode)
        return found * torch.where((batch.positions == POISONED).any(), torch.nan, 1.0) if mode == "loss" else found

    MaskedAutoencoder.forward = forward  # type: ignore[method-assign, assignment]


def nothing() -> None:
    """Before a run that nothing happens to."""


class FileOperations:
    """Counts fsyncs, renames and deletions of a rank, and does something at one of them."""

    def __init__(self, case: Case, total: int, act: Callable[[int], None]) -> None:
        self.case, self.at, self.act, self.count = case, round(case.moment * total), act, 0

    def __call__(self) -> None:
        if launch.place().rank != self.case.rank:
            return
        for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "replace"), (shutil, "rmtree")):
            self._wrap(owner, name)

    def _wrap(self, owner: Any, name: str) -> None:
        really = getattr(owner, name)

        def counted(*arguments: Any, **more: Any) -> Any:
            self.count += 1
            self.act(self.count - self.at)
            return really(*arguments, **more)

        setattr(owner, name, counted)


def die(after: int) -> None:
    if after == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def full(after: int) -> None:
    if 0 <= after < 5:
        raise OSError(errno.ENOSPC, "No space left on device")


class Matrix:
    """All cases on the same shards."""

    def __init__(self, shards: Path, out: Path) -> None:
        self.shards, self.out = shards, out
        self.references: dict[tuple[int, int, bool], tuple[dict[str, Any], float]] = {}

    def reference(self, world: int, stage: int, poisoned: bool) -> tuple[dict[str, Any], float]:
        """What a run has that nothing happens to, and its seconds."""
        key = world, stage, poisoned
        if key not in self.references:
            folder = self.out / f"reference-{world}-{stage}-{poisoned}"
            begun = time.monotonic()
            codes = self._run(folder, world, stage, poisoned)
            if any(codes):
                sys.exit(f"the run that nothing happens to ended with {codes}")
            self.references[key] = result(folder), time.monotonic() - begun
        return self.references[key]

    def _run(self, folder: Path, world: int, stage: int, poisoned: bool, attempt: int = 9) -> list[int | None]:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        log = folder / "logs" / str(attempt)
        return forked.end(forked.start(world, work, self.shards, folder / "run", log, stage, poisoned, nothing))

    def try_case(self, case: Case) -> str:
        """What went wrong; nothing if nothing did."""
        poisoned = case.kind == "nan"
        expected, seconds = self.reference(case.world, case.stage, poisoned)
        folder = self.out / f"case-{case.number}"
        (folder / "logs").mkdir(parents=True)
        before: Callable[[], None] = nothing
        if case.kind == "kill in a save":
            before = FileOperations(case, 60, die)
        elif case.kind == "disk full":
            before = FileOperations(case, 60, full)
        arguments = self.shards, folder / "run", folder / "logs" / "0", case.stage, poisoned, before
        ranks = forked.start(case.world, work, *arguments)
        if case.kind in ("kill", "nan", "signal", "corrupt"):
            time.sleep(case.moment * seconds)
            pid, what = ranks[case.rank].pid, case.signal if case.kind == "signal" else signal.SIGKILL
            if ranks[case.rank].is_alive() and pid is not None:
                os.kill(pid, what)
        if None in forked.end(ranks, PATIENT):
            for process in ranks:
                process.terminate()  # as torchrun at once: before all have met nobody can know that one is lost
        codes = forked.end(ranks, HANG - PATIENT)
        if None in codes:
            for process in ranks:
                process.kill()
            return f"ranks hung: {codes}"
        early = {-case.signal, Lost.exit_code}  # it came before the rank could hear it
        if case.kind == "signal" and not set(codes) <= {
            0,
            Stopped.exit_code,
            *(early if -case.signal in codes else ()),
        }:
            return f"the ranks ended with {codes}"
        if case.kind == "corrupt":
            corrupt(folder / "run" / "checkpoints", case)
        codes = self._run(folder, *case.then, poisoned)
        if any(codes):
            return f"the resumed ranks ended with {codes}"
        return compare(expected, result(folder), exact=not case.elastic)


def corrupt(checkpoints: Path, case: Case) -> None:
    """Flip a bit of the newest checkpoint, if there are two."""
    found = sorted(checkpoints.glob("step-*"))
    if len(found) > 1:
        victim = random.Random(case.number).choice(sorted(found[-1].iterdir()))
        content = bytearray(victim.read_bytes())
        content[random.Random(case.number).randrange(len(content))] ^= 1
        victim.write_bytes(content)


def result(folder: Path) -> dict[str, Any]:
    """All rows of all ranks and attempts by step and first position, and the weights."""
    rows: dict[tuple[int, int], list[Any]] = {}
    for log in sorted((folder / "logs").iterdir()):
        for line in log.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the process died in the middle of the line
                continue
            rows.setdefault((row["step"], row["positions"][0]), []).append(row)
    weights = load_file(folder / "run" / "model.safetensors")
    metrics = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in metrics if row["kind"] == "train"}
    return {"rows": rows, "weights": weights, "losses": losses}


def compare(expected: dict[str, Any], found: dict[str, Any], *, exact: bool) -> str:
    """The first difference."""
    images = [
        {p: n for rows in one["rows"].values() for row in rows for p, n in _images(row)} for one in (expected, found)
    ]
    if images[0] != images[1]:
        return "other images"
    if expected["losses"].keys() != found["losses"].keys():
        return f"metrics of steps {sorted(found['losses'])}"
    for step, loss in expected["losses"].items():
        if not near(loss, found["losses"][step], exact):
            return f"loss of step {step}: {found['losses'][step]}, expected {loss}"
    if exact:
        for at, rows in found["rows"].items():
            if any(row != expected["rows"][at][0] for row in rows):
                return f"rows of step {at[0]} differ"
    for name, weight in expected["weights"].items():
        other = found["weights"][name]
        if exact and not torch.equal(weight, other):
            return f"{name} differs"
        if not torch.allclose(weight, other, atol=1e-3):
            return f"{name} differs by {float((weight - other).abs().max()):.2g}"
    return ""


def _images(row: dict[str, Any]) -> list[tuple[int, int]]:
    return list(zip(row["positions"], row["numbers"], strict=True))


def near(expected: float | None, found: float | None, exact: bool) -> bool:
    if expected is None or found is None or exact:
        return expected == found
    return abs(expected - found) <= 1e-3 * abs(expected)


def main() -> None:
    shards, out, count, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    deepspeed()
    matrix = Matrix(shards, out)
    wrong = {}
    chosen_ones = [case for case in cases(count, seed) if case.kind in (sys.argv[5:] or KINDS)]
    for case in chosen_ones:
        trouble = matrix.try_case(case)
        if trouble:
            wrong[case.number] = {**asdict(case), "trouble": trouble}
            print(f"case {case}: {trouble}", file=sys.stderr, flush=True)
        else:
            shutil.rmtree(out / f"case-{case.number}")
    (out / "found.json").write_text(json.dumps({"cases": len(chosen_ones), "wrong": wrong}))


if __name__ == "__main__":
    main()
