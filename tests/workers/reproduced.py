"""Reproduce a table in forks that are killed: OUT SHARDS SECONDS...; each lives so long, the last as long as it wants.

Forked from a process that has imported all and begun nothing, so that a life is spent on the work. Prints for every
fork "killed", or the code that it ended with.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch

from tests.reproduced import reproduce


def live(out: Path, shards: Path, seconds: float | None) -> str:
    """Work in a process group of its own, which is killed after so many seconds."""
    child = os.fork()
    if child == 0:
        os.setsid()
        torch.set_num_threads(1)
        code = 1
        try:
            reproduce(out, shards)
            code = 0
        finally:
            os._exit(code)
    end = time.monotonic() + (seconds if seconds is not None else 600)
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return str(os.waitstatus_to_exitcode(status))
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "killed"


if __name__ == "__main__":
    for given in [*map(float, sys.argv[3:]), None]:
        print(live(Path(sys.argv[1]), Path(sys.argv[2]), given), flush=True)
