"""``mae-pipe tune``: which values of a recipe are fastest on this machine."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("recipe")
@click.option("--shards", required=True, type=click.Path(path_type=Path), help="What `mae-pipe shard` wrote.")
@click.option(
    "--out", default="tuned.toml", show_default=True, type=click.Path(path_type=Path), help="Recipe to write."
)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a recipe key: mask.ratio=0.6.")
@click.option("--split", default="train", show_default=True, help="Split of the shards to learn from.")
@click.option("--minutes", type=click.FloatRange(min=0), default=10.0, show_default=True, help="Begin nothing after.")
@click.option("--plugin", "plugins", multiple=True, type=click.Path(path_type=Path), help="A Python file with plugins.")
def tune(
    recipe: str,
    shards: Path,
    out: Path,
    changes: tuple[str, ...],
    split: str,
    minutes: float,
    plugins: tuple[Path, ...],
) -> None:
    """Find the micro-batch and the data workers that give the most images a second with RECIPE on this machine.

    Every candidate is a real, short pretraining run on SHARDS in a process of its own; one that fails is named. The
    best is written as a complete recipe. Blocks are recomputed only where memory runs out. Runs on one process.
    """
    from rich.console import Console
    from rich.table import Table

    from mae_pipe import recipe as recipes
    from mae_pipe.disk import write_whole
    from mae_pipe.planning import tuning
    from mae_pipe.provenance import as_toml

    chosen = recipes.load(recipe, changes, task="pretrain")
    assert isinstance(chosen, recipes.Pretrain)
    table = Table("micro-batch", "workers", "recomputed", "images/s: least", "median", "most", "GB", "data wait")

    def told(tried: tuning.Tried) -> None:
        one = tried.candidate
        first = (str(one.micro_batch), str(one.workers), "all" if one.checkpoint_blocks else "none")
        if tried.trouble:
            table.add_row(*first, tried.trouble)
            click.echo(f"micro-batch {one.micro_batch}, {one.workers} workers: {tried.trouble}", err=True)
            return
        speeds = (f"{speed:,.1f}" for speed in (min(tried.rates), tried.median, max(tried.rates)))
        table.add_row(*first, *speeds, f"{tried.memory / 1e9:.2f}", f"{tried.wait_share:.0%}")
        click.echo(f"micro-batch {one.micro_batch}, {one.workers} workers: {tried.median:,.1f} images/s", err=True)

    tuned, best = tuning.tune(chosen, shards, split=split, minutes=minutes, plugins=plugins, told=told)
    write_whole(out, as_toml(tuned).encode())
    Console(width=None if Console().is_terminal else 120).print(table)
    click.echo(f"{out}: data.micro_batch = {best.micro_batch}, data.workers = {best.workers}")
