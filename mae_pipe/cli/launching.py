"""The options of commands that train: how many processes, and how often they may be started again."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import click

from mae_pipe.spawning import OPTIONS, Job


def launching(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``command`` the options, and the ``job`` that they make."""

    @click.option("--nproc", type=click.IntRange(min=1), default=1, help="Processes to start on this machine.")
    @click.option("--nnodes", type=click.IntRange(min=1), default=1, help="Machines that are given this same command.")
    @click.option("--rendezvous", default="", metavar="HOST:PORT", help="One of the machines, where all meet.")
    @click.option(
        "--max-restarts",
        type=click.IntRange(min=0),
        default=0,
        help="How often to start again by itself after a rank was killed, or hung.",
    )
    @functools.wraps(command)
    def with_job(*, nproc: int, nnodes: int, rendezvous: str, max_restarts: int, **given: Any) -> Any:
        return command(job=Job(nproc, nnodes, rendezvous, max_restarts), **given)

    return with_job


def start(job: Job) -> None:
    """Where the job is of several processes and this is none of them: run them, and end with their exit code."""
    from mae_pipe import launch, spawning

    if job.several and not launch.launched():
        sys.exit(spawning.spawn(job, for_a_process(sys.argv[1:])))


def for_a_process(arguments: list[str]) -> list[str]:
    """The same command for one of the processes."""
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in OPTIONS:
            next(rest, None)
        elif not argument.startswith(tuple(f"{option}=" for option in OPTIONS)):
            kept.append(argument)
    return kept
