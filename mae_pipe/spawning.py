"""``--nproc``, ``--nnodes`` and ``--max-restarts``: a command in several processes, by torchrun's own agent."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from mae_pipe.errors import Lost, RecipeError
from mae_pipe.meeting import Meeting

OPTIONS = ("--nproc", "--nnodes", "--rendezvous", "--max-restarts")  # the launcher's own


@dataclass(frozen=True)
class Job:
    """How many processes a command runs in, and how often they may be started again.

    Attributes:
        processes: on this node.
        nodes: on each of which the same command is given.
        rendezvous: HOST:PORT of one of the nodes, at which their launchers meet.
        restarts: after a rank was killed, or hung.
    """

    processes: int = 1
    nodes: int = 1
    rendezvous: str = ""
    restarts: int = 0

    def __post_init__(self) -> None:
        if self.nodes > 1 and not self.rendezvous:
            raise RecipeError(
                "--nnodes wants --rendezvous HOST:PORT, the same on every node: one of them, and a free port there"
            )
        if self.rendezvous and not self.rendezvous.rpartition(":")[2].isdigit():
            raise RecipeError(
                f"--rendezvous {self.rendezvous!r} is not HOST:PORT; give a port that is free on that host"
            )

    @property
    def several(self) -> bool:
        """Whether there is anything for a launcher to do."""
        return self.processes > 1 or self.nodes > 1 or self.restarts > 0


def spawn(job: Job, arguments: Sequence[str]) -> int:
    """Run ``mae-pipe ARGUMENTS`` in the processes of a job; the first failure's exit code.

    SIGTERM and SIGUSR1 are handed on, so that the processes save and end with ``Stopped.exit_code``. After a rank
    was killed or hung all are started again, and go on from the last checkpoint, ``job.restarts`` times; on
    several nodes where all launchers want it.

    Raises:
        Lost: a process was killed, or the launchers' meeting broke up, and there is no restart left.
        RunError: the launchers of all nodes did not meet.
    """
    meeting = Meeting(job.rendezvous, job.nodes) if job.rendezvous else None
    for attempt in range(job.restarts + 1):
        resume = ["--resume", "auto"] if attempt else []
        with _handing_on(signal.SIGTERM, signal.SIGUSR1) as asked:
            code, lost = _once(job, [*arguments, *resume], attempt, meeting)
        again = code == Lost.exit_code and attempt < job.restarts and not asked
        if meeting:
            again = meeting.ended(attempt, again=again)
        if not again:
            break
        what = lost or "a rank was lost"
        print(f"mae-pipe: {what}; restart {attempt + 1} of {job.restarts}", file=sys.stderr, flush=True)
    if lost:
        raise Lost(f"{lost}; the same command goes on from the last checkpoint")
    return code


def _once(job: Job, arguments: list[str], attempt: int, meeting: Meeting | None) -> tuple[int, str]:
    """The exit code of one start, and what was lost that no process could say; empty if nothing was."""
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError, RendezvousTimeoutError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # A failed rank has said its sentence; torchrun's own report would bury it.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // job.processes)))
    where = meeting.settings if meeting else {"rdzv_endpoint": "localhost:0"}
    with tempfile.TemporaryDirectory(prefix="mae-pipe-") as logs:
        settings: dict[str, Any] = {
            "min_nodes": job.nodes,
            "max_nodes": job.nodes,
            "nproc_per_node": job.processes,
            "rdzv_backend": "c10d",
            "run_id": f"mae-pipe-{attempt}" if meeting else f"mae-pipe-{os.getpid()}-{attempt}",
            "max_restarts": 0,  # torchrun's would also start again what a wrong recipe has ended
            "monitor_interval": 0.1,
            "signals_to_handle": "SIGINT,SIGHUP,SIGQUIT",  # on SIGTERM it would end the job instead of letting it save
            "logs_specs": DefaultLogsSpecs(log_dir=logs),
            **where,
        }
        try:
            elastic_launch(LaunchConfig(**settings), sys.executable)("-m", "mae_pipe", *arguments)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode >= 0:
                return int(failure.exitcode), ""
            name = signal.Signals(-failure.exitcode).name
            return Lost.exit_code, (
                f"process {rank} was killed by {name}, as the system does when memory runs out "
                "(lower data.micro_batch or --nproc if so)"
            )
        except SignalException as error:
            return 128 + int(error.sigval), ""
        except RendezvousTimeoutError as error:
            if meeting is None:
                raise
            raise meeting.failed("this one did, and not all others") from error
        except (RendezvousError, DistError):
            return (
                Lost.exit_code,
                f"the launcher at {job.rendezvous or 'this machine'} is gone, or cannot be reached any more",
            )
    return 0, ""


@contextmanager
def _handing_on(*numbers: signal.Signals) -> Iterator[list[int]]:
    """Send these signals on to the child processes; gives the list of those that came."""
    came: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        came.append(number)
        for listed in Path("/proc/self/task").glob("*/children"):
            for child in listed.read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(child), number)

    old = {number: signal.signal(number, hand_on) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
