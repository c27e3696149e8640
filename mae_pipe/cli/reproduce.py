"""``mae-pipe reproduce``: the paper's tables, run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mae_pipe.cli.places import PLACE

PATH = click.Path(path_type=Path)
SCALES = click.Choice(["paper", "imagenette", "digits"])


@click.group()
def reproduce() -> None:
    """Run the paper's tables and figures, at full scale or small, and write our numbers beside the paper's.

    docs/reproducing-the-paper.md says what is run at which scale.
    """


@reproduce.command("list")
def list_() -> None:
    """List the tables, and the scales at which they can be run."""
    from mae_pipe.reproducing import published

    for name in published.tables():
        table = published.table(name)
        click.echo(f"{name:<6} {table.where}: {table.title}, {len(table.rows)} rows")
    click.echo()
    for name in published.scales():
        click.echo(f"--scale {name:<11} {published.scale(name).about}")


@reproduce.command()
@click.argument("table")
@click.option("--scale", type=SCALES, default="paper", show_default=True, help="What its rows are there.")
def show(table: str, scale: str) -> None:
    """Print TABLE: the paper's numbers, and what stands for each row at a scale."""
    from mae_pipe.reproducing.show import rows

    for line in rows(table, scale):
        click.echo(line)


@reproduce.command()
@click.argument("table")
@click.option("--out", required=True, type=PATH, help="Folder, made or gone on with; several tables may share it.")
@click.option("--scale", type=SCALES, default="imagenette", show_default=True, help="How large the runs are.")
@click.option(
    "--shards", type=PLACE, help="Shards or images with splits train and val.  [default: digits bring theirs]"
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Runs of every row.")
@click.option("--set", "changes", multiple=True, metavar="PART.KEY=VALUE",
              help="Change a key of pretrain, finetune, probe or tokenizer: pretrain.schedule.epochs=2.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes at a time.")
@click.option("--dry-run", is_flag=True, help="Say what would be run, what is shared, hours and disk; touch nothing.")
@click.option("--tflops", type=click.FloatRange(min=0, min_open=True), default=312.0, show_default=True,
              help="Of one GPU at its peak, for the hours of --dry-run at the paper's scale.")  # fmt: skip
@click.option("--slurm", type=PATH, help="Write a script that submits all as SLURM arrays, and run nothing.")
@click.option("--gpus", type=click.IntRange(min=1), default=8, show_default=True, help="With --slurm: of each node.")
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="With --slurm: of each run.")
@click.option("--time", default="24:00:00", show_default=True, help="With --slurm: limit of one go.")
@click.option("--sbatch", "directives", multiple=True, help="With --slurm: a further option of sbatch: '--qos=long'.")
@click.option("--plugin", "plugins", multiple=True, type=PATH, help="A Python file with plugins.")
@click.option("--only", hidden=True, help="One stem, tokenizer or the clock; no page is written.")
def run(table: str, **asked: Any) -> None:
    """Run what TABLE wants and is not there yet, and write OUT/TABLE.html, .md and .json.

    The same command goes on where it was stopped. `mae-pipe reproduce list` names the tables.
    """
    from rich.console import Console

    from mae_pipe import reproduce as work

    page = work(table, console=Console(stderr=True), **asked)
    if page is not None:
        click.echo(page)


@reproduce.command()
@click.argument("table")
@click.option("--out", required=True, type=PATH, help="Folder that `reproduce run` has begun.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="As of run.")
def page(table: str, out: Path, seeds: int) -> None:
    """Write the pages of what is there of TABLE; what is missing is named."""
    from mae_pipe.reproducing.verb import page_of

    click.echo(page_of(table, out, seeds=seeds))
