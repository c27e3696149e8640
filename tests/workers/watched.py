"""Jobs of three ranks, all at once, in each of which something happens to one: OUT, and any number of CASE RANK.

OUT/CASE-RANK gets what the ranks say; prints for every case a line of JSON: the exit codes of the ranks that end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import torch
import torch.distributed as dist

from mae_pipe import launch, watchdog
from mae_pipe.errors import DataError, MaePipeError
from tests.workers import forked

WORLD, LOST, HANG = 3, 10.0, 14.0


def happens(case: str) -> None:
    if case == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if case == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if case == "hangs":
        time.sleep(600)
    if case == "fails":
        raise DataError("shard train-000001.tar is damaged; build it again")


@watchdog.naming_a_lost_rank()
def sums(case: str, victim: int) -> None:
    here = launch.join()
    watchdog.limits(lost=LOST, hang=HANG)
    numbers = torch.ones(4)
    time.sleep(4 * watchdog.BEAT)  # all have said where they are
    for step in range(5):
        watchdog.at("waiting for data", step)
        if step == 3 and here.rank == victim:
            happens(case)
        watchdog.at("computing", step)
        dist.all_reduce(numbers)


def work(out: str, case: str, victim: int) -> None:
    """What a rank does, and says as the command line does."""
    os.dup2(os.open(f"{out}/{case}-{victim}", os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
    try:
        sums(case, victim)
    except MaePipeError as error:
        if watchdog.leave(error):
            print(f"mae-pipe: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)


def main() -> None:
    out, *given = sys.argv[1:]
    cases = list(zip(given[::2], map(int, given[1::2]), strict=True))
    jobs = [forked.start(WORLD, work, out, case, victim) for case, victim in cases]
    for (case, victim), ranks in zip(cases, jobs, strict=True):
        waited = [process for rank, process in enumerate(ranks) if (case, rank) != ("stopped", victim)]
        print(json.dumps(forked.end(waited, 60)), flush=True)
        ranks[victim].kill()


if __name__ == "__main__":
    main()
