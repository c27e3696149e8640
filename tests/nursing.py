"""Workers of tests, forked from a process that is started once for all of them (tests/workers/nursery.py)."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType

from tests.workers import forked, nursery

ROOT = Path(__file__).parents[1]


def call(worker: ModuleType, *arguments: object, ranks: int = 1, seconds: float = 250) -> tuple[str, str]:
    """Run a worker's main function to its end; what it said on stdout and stderr.

    Args:
        ranks: the worker is run in so many, unless it forks them itself.
    """
    done = run(worker, *arguments, ranks=ranks, seconds=seconds)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-6000:]}"
    return done.stdout, done.stderr


def run(
    worker: ModuleType, *arguments: object, ranks: int = 1, seconds: float = 250
) -> subprocess.CompletedProcess[str]:
    """The same for one that may fail."""
    words = [worker.__name__, *map(str, arguments)]
    if ranks > 1:
        words = [forked.__name__, str(ranks), *words]
    nurse = started()
    assert nurse.stdin is not None
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        out.touch()
        err.touch()
        nurse.stdin.write((json.dumps([words[0], words[1:], str(out), str(err)]) + "\n").encode())
        child = number_from(nurse, 300)  # the first one waits for all to be imported
        assert child is not None, "the nursery does not answer"
        code = number_from(nurse, seconds)
        if code is None:
            os.killpg(child, signal.SIGKILL)
            number_from(nurse, 60)
            raise subprocess.TimeoutExpired(words, seconds, out.read_bytes(), err.read_bytes())
        return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())


@cache
def started() -> subprocess.Popen[bytes]:
    """This process's nursery, which ends with it: when its stdin is closed, also where this process is killed."""
    own = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}  # the latter as the command line sets it
    command = [sys.executable, "-m", nursery.__name__]
    pipe = subprocess.PIPE
    nurse = subprocess.Popen(command, cwd=ROOT, env=os.environ | own, stdin=pipe, stdout=pipe, bufsize=0)
    atexit.register(ended, nurse)
    return nurse


def ended(nurse: subprocess.Popen[bytes]) -> None:
    """Close its pipes and wait for its end."""
    assert nurse.stdin is not None
    assert nurse.stdout is not None
    nurse.stdin.close()
    nurse.stdout.close()
    nurse.wait(30)


def number_from(nurse: subprocess.Popen[bytes], seconds: float) -> int | None:
    """The next line; None where it does not come in time."""
    assert nurse.stdout is not None
    if not select.select([nurse.stdout], [], [], seconds)[0]:
        return None
    return int(nurse.stdout.readline())
