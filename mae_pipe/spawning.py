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

from mae_pipe.errors import Lost, RecipeError, RunError

OPTIONS = ("--nproc", "--nnodes", "--rendezvous", "--max-restarts")  # the launcher's own
MEETING = 600  # seconds in which the launchers of all nodes must have met


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
    was killed or hung all are started again, and go on from the last checkpoint, ``job.restarts`` times.

    Raises:
        Lost: a process was killed, and there is no restart left.
    """
    for attempt in range(job.restarts + 1):
        again = ["--resume", "auto"] if attempt else []
        with _handing_on(signal.SIGTERM, signal.SIGUSR1) as asked:
            code, killed = _once(job, [*arguments, *again], attempt)
        if (code != Lost.exit_code and not killed) or attempt == job.restarts or asked:
            break
        what = killed or "a rank was lost"
        print(f"mae-pipe: {what}; restart {attempt + 1} of {job.restarts}", file=sys.stderr, flush=True)
    if killed:
        raise Lost(
            f"{killed}, as the system does when memory runs out; lower data.micro_batch or --nproc if so; "
            "the same command goes on from the last checkpoint"
        )
    return code


def _once(job: Job, arguments: list[str], attempt: int) -> tuple[int, str]:
    """The exit code of one start, and which process was killed by what; empty if none was."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # A failed rank has said its sentence; torchrun's own report would bury it.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // job.processes)))
    alone = job.nodes == 1
    with tempfile.TemporaryDirectory(prefix="mae-pipe-") as logs:
        settings: dict[str, Any] = {
            "min_nodes": job.nodes,
            "max_nodes": job.nodes,
            "nproc_per_node": job.processes,
            "rdzv_backend": "c10d",
            "rdzv_endpoint": job.rendezvous or "localhost:0",
            "rdzv_configs": {"join_timeout": MEETING},
            "run_id": f"mae-pipe-{os.getpid()}-{attempt}" if alone else f"mae-pipe-{attempt}",
            "max_restarts": 0,  # torchrun's would also start again what a wrong recipe has ended
            "monitor_interval": 0.1,
            "signals_to_handle": "SIGINT,SIGHUP,SIGQUIT",  # on SIGTERM it would end the job instead of letting it save
            "logs_specs": DefaultLogsSpecs(log_dir=logs),
        }
        try:
            elastic_launch(LaunchConfig(**settings), sys.executable)("-m", "mae_pipe", *arguments)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode >= 0:
                return int(failure.exitcode), ""
            return Lost.exit_code, f"process {rank} was killed by {signal.Signals(-failure.exitcode).name}"
        except SignalException as error:
            return 128 + int(error.sigval), ""
        except RendezvousError as error:
            raise RunError(
                f"the launchers of {job.nodes} nodes did not meet at {job.rendezvous} within {MEETING} s ({error}); "
                "check that the same command was given on every node, and that all can reach this host and port"
            ) from error
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
