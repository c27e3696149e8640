"""A script that gives a study to SLURM: an array of tokenizers, an array of stems after it, and the page at the end."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mae_pipe import slurm
from mae_pipe.reproducing.stems import Stem, Trained

PIECE = "MAE_PIPE_PIECE"  # stands in a command for the name of an array task's run


@dataclass(frozen=True)
class Wanted:
    """What every run is given."""

    nodes: int
    gpus: int
    time: str
    python: str
    directives: tuple[str, ...] = ()
    cpus: int = 9  # of a process: eight workers read images, as the recipes say


def script(
    stages: Sequence[Sequence[Stem | Trained]],
    command: Sequence[str],
    first_of_page: Sequence[str],
    out: Path,
    wanted: Wanted,
    table: str,
    seeds: int,
) -> str:
    """A shell script that submits them, each stage after the one before.

    Args:
        stages: runs that may be made at once.
        command: ``reproduce run TABLE ...``, to which ``--only NAME`` is added.
        first_of_page: what is added to it before the page is written; empty: nothing is to be done.
    """
    out = out.absolute()
    return "\n".join(_lines(stages, command, first_of_page, out, wanted, table, seeds)) + "\n"


def _lines(
    stages: Sequence[Sequence[Stem | Trained]],
    command: Sequence[str],
    first_of_page: Sequence[str],
    out: Path,
    wanted: Wanted,
    table: str,
    seeds: int,
) -> Iterator[str]:
    yield "#!/bin/bash"
    yield "# Submits what is left of a table; to go on after a failure, write this file again and run it again."
    yield "set -e"
    yield "before=  # the job that the next one waits for"
    for number, stage in enumerate(filter(None, stages), start=1):
        names = [one.name for one in stage]
        name = f"{table}-{number}"
        text = slurm.script(_job(name, out, wanted, f"--array=0-{len(names) - 1}", names), [*command, "--only", PIECE])
        text = text.replace(PIECE, '"${pieces[$SLURM_ARRAY_TASK_ID]}"')
        yield from _submitted(text, "afterok")
    page = [wanted.python, "-m", "mae_pipe", "reproduce", "page", table, "--out", str(out), "--seeds", str(seeds)]
    alone = Wanted(1, 1, wanted.time, wanted.python, wanted.directives, wanted.cpus)
    if first_of_page:
        text = slurm.script(_job(f"{table}-clock", out, alone), [*command, *first_of_page])
        yield from _submitted(text, "afterany")
    yield from _submitted(slurm.script(_job(f"{table}-page", out, alone), page[3:]), "afterany")


def _job(name: str, out: Path, wanted: Wanted, array: str = "", pieces: Sequence[str] = ()) -> slurm.Job:
    return slurm.Job(
        name=name,
        beside=out / name,
        nodes=wanted.nodes,
        gpus=wanted.gpus,
        cpus=wanted.cpus,
        time=wanted.time,
        python=wanted.python,
        directives=(*([array] if array else []), *wanted.directives),
        prologue=(f"pieces=({shlex.join(pieces)})",) if pieces else (),
    )


def _submitted(text: str, when: str) -> Iterator[str]:
    """Give a batch script to sbatch, to be begun ``when`` the one before has ended."""
    yield f"job=$(sbatch --parsable ${{before:+--dependency={when}:$before}} <<'END_OF_JOB'"
    yield text.rstrip("\n")
    yield "END_OF_JOB"
    yield ")"
    yield "before=${job%%;*}  # without the cluster's name"
    yield 'echo "submitted: $job"'
