"""All that a table still wants: one run after another, or several processes at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from mae_pipe import errors
from mae_pipe.catalog import Catalog
from mae_pipe.errors import MaePipeError, Stopped
from mae_pipe.reproducing.folder import Reproduction
from mae_pipe.reproducing.running import make, whole
from mae_pipe.reproducing.stems import Stem, Study, Trained

GRACE = 60  # seconds in which a process may save when it is asked to stop
POLL = 0.2  # seconds


def left(study: Study, here: Reproduction) -> tuple[list[Stem | Trained], list[Stem | Trained]]:
    """What is not whole yet: tokenizers, and then stems."""
    tokenizers = [one for one in study.tokenizers.values() if not whole(one, here)]
    return [*tokenizers], [stem for stem in study.stems.values() if not whole(stem, here)]


def run(study: Study, here: Reproduction, catalog: Catalog, console: Console) -> None:
    """One after another, in this process.

    Raises:
        MaePipeError: one could not be made; those before it are kept.
    """
    todo = [one for stage in left(study, here) for one in stage]
    for number, one in enumerate(todo, start=1):
        console.print(f"[bold]{number} of {len(todo)}[/]  {described(one, study)}", highlight=False)
        make(one, here, catalog, console)


def run_together(study: Study, here: Reproduction, command: Sequence[str], jobs: int, console: Console) -> None:
    """``jobs`` at a time, each as ``mae-pipe COMMAND --only NAME`` with its share of the cores.

    What a process says goes to ``.NAME.log`` beside its folder.

    Raises:
        MaePipeError: with the last line of the one that failed; the others are ended, what they have saved is kept.
    """
    todo = [one for stage in left(study, here) for one in stage]
    number = 0
    with _ending() as running:
        while todo or running:
            while len(running) < jobs and (one := next((one for one in todo if _may_begin(one, here)), None)):
                todo.remove(one)
                running[one.name] = _start(one.name, here, command, jobs)
                console.print(f"begun: {described(one, study)}", highlight=False, soft_wrap=True)
            name, code = _first_to_end(running)
            del running[name]
            if code:
                raise _failed(name, code, here)
            number += 1
            console.print(
                f"done: {name} ({number} of {number + len(todo) + len(running)})", highlight=False, soft_wrap=True
            )


def _may_begin(one: Stem | Trained, here: Reproduction) -> bool:
    """Whether it waits for no tokenizer."""
    return isinstance(one, Trained) or one.tokenizer is None or whole(one.tokenizer, here)


def described(one: Stem | Trained, study: Study) -> str:
    """For people."""
    if isinstance(one, Trained):
        return f"{one.name}, which the others take their tokens from"
    rows = study.rows_of(one.name)
    shown = ", ".join(rows[:2]) + (f" and {len(rows) - 2} more" if len(rows) > 2 else "")
    return f"{one.name}: {shown}; seed {one.recipe.seed}"


def log_of(name: str, here: Reproduction) -> Path:
    """Where a process says what it does."""
    return here.stems / f".{name}.log"


def _start(name: str, here: Reproduction, command: Sequence[str], jobs: int) -> subprocess.Popen[bytes]:
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    here.stems.mkdir(parents=True, exist_ok=True)
    with log_of(name, here).open("wb") as log:
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "mae_pipe", *command, "--only", name],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": threads, **os.environ},
        )


def _first_to_end(running: dict[str, subprocess.Popen[bytes]]) -> tuple[str, int]:
    while True:
        for name, process in running.items():
            try:
                return name, process.wait(POLL / len(running))
            except subprocess.TimeoutExpired:
                continue


def _failed(name: str, code: int, here: Reproduction) -> MaePipeError:
    """The error whose exit code it ended with, and its last line."""
    said = log_of(name, here).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MaePipeError)]
    kind = next((kind for kind in kinds if kind.exit_code == code), MaePipeError)
    last = said[-1].removeprefix("mae-pipe: ") if said else f"it ended with {code}"
    return kind(f"{name}: {last} (all of what it said: {log_of(name, here)})")


@contextmanager
def _ending() -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Processes by name, which are asked to save and to end when this one ends, however that is."""
    running: dict[str, subprocess.Popen[bytes]] = {}

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(f"asked to stop by {signal.Signals(number).name}; the same command goes on")

    old = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield running
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for number, before in old.items():
            signal.signal(number, before)
