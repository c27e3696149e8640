"""``mae-pipe slurm``: a batch script for a run on many nodes."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import click

from mae_pipe.cli.places import PLACE

VERBS = ("pretrain", "probe", "finetune")


class _Like(click.ParamType):  # type: ignore[type-arg]
    """Text of one form, as SLURM reads it."""

    def __init__(self, name: str, form: str, example: str) -> None:
        self.name, self.form, self.example = name, form, example

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(self.form, value):
            self.fail(f"{value!r} is not of the form that SLURM reads, such as {self.example}", param, ctx)
        return value


TIME = _Like("time", r"\d+(:[0-5]?\d){0,2}|\d+-\d{1,2}(:[0-5]?\d){0,2}", "24:00:00 or 2-12:00:00")
MEMORY = _Like("size", r"\d+[KMGT]?", "500G, or 0 for all of a node")
WORD = _Like("name", r"[\w.,+@-]+", "gpu or team-7")
LINE = _Like("line", r"-[^\x00-\x1f\x7f]*", "'--qos=long'")
PATH = click.Path(path_type=Path)


@click.command()
@click.argument("recipe")
@click.argument("more", nargs=-1)
@click.option("--out", required=True, type=PATH, help="Run folder, on a disk that all nodes see.")
@click.option("--shards", type=PLACE, help="What the nodes read images from.  [default of probe, finetune: RUN's]")
@click.option("--verb", type=click.Choice(VERBS), default="pretrain", show_default=True, help="What the job does.")
@click.option("--run", "run", type=PATH, help="The pretrained run that probe and finetune begin from.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a recipe key: mask.ratio=0.6.")
@click.option("--plugin", "plugins", multiple=True, type=PATH, help="A Python file with plugins.")
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Nodes.")
@click.option("--gpus", required=True, type=click.IntRange(min=1), help="GPUs, and so processes, of each node.")
@click.option("--cpus", type=click.IntRange(min=1), help="CPUs a process.  [default: the recipe's data.workers + 1]")
@click.option("--mem", "memory", type=MEMORY, help="Memory of each node.  [default: the cluster's]")
@click.option("--time", type=TIME, default="24:00:00", show_default=True, help="Time limit of one go.")
@click.option("--partition", type=WORD, help="Where to queue.")
@click.option("--account", type=WORD, help="Who pays.")
@click.option("--job-name", "name", help="As squeue shows it.  [default: the run folder's name]")
@click.option("--max-restarts", "restarts", type=click.IntRange(min=0), default=3, show_default=True,
              help="Queue again so often because a rank was lost.")  # fmt: skip
@click.option("--sbatch", "directives", multiple=True, type=LINE, help="A further option of sbatch: '--qos=long'.")
@click.option("--prologue", multiple=True, help="Shell to run first: 'module load cuda'.")
@click.option("--python", default=sys.executable, help="Python on the nodes.  [default: this one, by its path]")
@click.option("-o", "--output", default="-", type=click.Path(), help="Where to write the script.  [default: to stdout]")
@click.option("--submit", "now", is_flag=True, help="Give the script to sbatch.")
def slurm(
    recipe: str,
    more: tuple[str, ...],
    out: Path,
    shards: Path | str | None,
    verb: str,
    run: Path | None,
    changes: tuple[str, ...],
    plugins: tuple[Path, ...],
    cpus: int | None,
    name: str | None,
    output: str,
    now: bool,
    **asked: Any,
) -> None:
    """Write a SLURM batch script that trains by RECIPE on many nodes.

    One process a GPU. Two minutes before its time limit the job saves and is queued again, and so it is when a rank was
    lost; docs/launch.md says what the script does. Recipe and command are checked now rather than after a night in
    the queue. MORE, after --, are further options of the verb, such as --split or --from-scratch.
    """
    from mae_pipe import recipe as recipes
    from mae_pipe.optim import Plan
    from mae_pipe.slurm import Job, script, submit

    chosen = recipes.load(recipe, changes, task=verb)
    Plan.of(chosen, 1, asked["nodes"] * asked["gpus"])  # refuses batches that do not divide over so many processes
    known = set(recipes.names())
    out = out.absolute()
    command = [*_begun(verb, recipe, run, known), "--out", str(out)]
    if shards is not None:
        command += ["--shards", str(shards.absolute() if isinstance(shards, Path) else shards)]
    command += [f"--set={change}" for change in changes]
    command += [f"--plugin={path.absolute()}" for path in plugins]
    command += more
    _parse(command)
    text = script(Job(name=name or out.name, beside=out, cpus=cpus or chosen.data.workers + 1, **asked), command)

    if output != "-":
        from mae_pipe.disk import write_whole

        write_whole(Path(output), text.encode())
        click.echo(f"written: {output}" + ("" if now else f"; next: sbatch {output}"), err=True)
    elif not now:
        click.echo(text, nl=False)
    if now:
        click.echo(submit(text))


def _begun(verb: str, recipe: str, run: Path | None, known: set[str]) -> list[str]:
    """The first words of the command; what is no ``known`` recipe is a path."""

    def named(name: str) -> str:
        return name if name in known else str(Path(name).absolute())

    if verb == "pretrain":
        if run is not None:
            raise click.UsageError("--run is for --verb probe and finetune; pretrain begins from nothing")
        return [verb, named(recipe)]
    if run is None:
        raise click.UsageError(f"{verb} begins from a pretrained run: give --run RUN")
    return [verb, named(str(run)), "--recipe", named(recipe)]


def _parse(command: list[str]) -> None:
    """Refuse a command line that the verb would refuse."""
    from mae_pipe.cli import _group

    verb = _group.get_command(click.Context(_group), command[0])
    assert verb is not None
    verb.make_context(f"mae-pipe {command[0]}", command[1:])
