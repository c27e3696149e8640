"""A SLURM job of a run: a batch script that starts one process a GPU, and has the job queued again until it is done."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mae_pipe import __version__
from mae_pipe.errors import Lost, RunError, Stopped

LEAD = 120  # seconds before the time limit at which the processes are asked to save
WAIT = 600  # seconds that the others have to end by themselves once the first process has ended


@dataclass(frozen=True)
class Job:
    """What the batch script asks for.

    Attributes:
        cpus: of one process, for itself and the workers that read images.
        beside: the path to which the job's number and an ending are added: ``.log``, and ``.lost`` for lost ranks.
        directives: further lines for sbatch as they are; where they say it again, they win.
        prologue: lines of shell to run on the first node before the processes start, which get its environment.
        restarts: how often the job is queued again because a rank was lost, before it has got as far as its time limit.
    """

    name: str
    beside: Path
    nodes: int
    gpus: int
    cpus: int
    time: str
    python: str
    partition: str | None = None
    account: str | None = None
    memory: str | None = None
    directives: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    restarts: int = 3


def script(job: Job, command: Sequence[str]) -> str:
    """The batch script that runs ``mae-pipe COMMAND`` in ``job.nodes`` x ``job.gpus`` processes."""
    if not job.beside.parent.is_dir():  # SLURM would end the job without a word
        raise RunError(
            f"there is no folder {job.beside.parent}, so the job could not write its log there; make it first"
        )
    return "\n".join(["#!/bin/bash", *_directives(job), *_body(job, command), ""])


def submit(text: str) -> str:
    """Give a batch script to sbatch; returns what it says."""
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise RunError(
            "there is no sbatch on this machine's PATH; write the script with -o FILE and submit it where there is"
        )
    done = subprocess.run([sbatch], input=text, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise RunError(f"sbatch refused the job: {' '.join(done.stderr.split())}")
    return done.stdout.strip()


def _directives(job: Job) -> Iterator[str]:
    asked = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": job.gpus,
        "gpus-per-node": job.gpus,  # not a GPU a task: a process takes the card of its local rank, and NCCL sees all
        "cpus-per-task": job.cpus,
        "mem": job.memory,
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "output": f"{str(job.beside).replace('%', '%%')}-%j.log",
        "open-mode": "append",
        "signal": f"USR1@{LEAD}",  # to the processes, not to this script
    }
    for name, value in asked.items():
        if value is not None:
            yield f"#SBATCH --{name}={_quoted(str(value))}"
    yield "#SBATCH --requeue"
    yield from (f"#SBATCH {line}" for line in job.directives)


def _quoted(value: str) -> str:
    """A value as sbatch reads it from a script: not by a shell's rules, a backslash counts between any quotes."""
    if not value.isprintable():
        raise RunError(f"{value!r} has a character that cannot stand in a batch script; choose another name")
    if re.fullmatch(r"[\w./:@%+=,-]+", value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _body(job: Job, command: Sequence[str]) -> Iterator[str]:
    yield f"""# Written by mae-pipe {__version__}. To go on with the run later, submit this file again.
set -e
unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT  # of a launcher in the shell that submitted this"""
    yield from job.prologue
    words = shlex.join([job.python, "-m", "mae_pipe", *command])
    yield f"""
code=0
srun --cpus-per-task={job.cpus} --wait={WAIT} --kill-on-bad-exit=0 \\
    {words} || code=$?

lost={shlex.quote(str(job.beside))}-$SLURM_JOB_ID.lost  # a line for each time that a rank was lost
if ((code == {Stopped.exit_code})); then  # asked to stop, and saved
    rm -f "$lost"
elif ((code == {Lost.exit_code} || (code > 128 && code != 130))); then  # a rank was lost, or ended by a signal
    echo "$code" >>"$lost"
    if (($(wc -l <"$lost") > {job.restarts})); then
        echo "mae-pipe: exit code $code once more after {job.restarts} restarts; the job is not queued again" >&2
        exit "$code"
    fi
else
    exit "$code"
fi
echo "mae-pipe: exit code $code; the job is queued again" >&2
scontrol requeue "$SLURM_JOB_ID" || exit "$code\""""
