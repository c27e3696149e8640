"""``mae-pipe pretrain``."""

from __future__ import annotations

from pathlib import Path

import click

from mae_pipe.cli.launching import launching, start
from mae_pipe.cli.places import PLACE
from mae_pipe.spawning import Job


@click.command()
@click.argument("recipe")
@click.option("--shards", required=True, type=PLACE, help="What `mae-pipe shard` wrote, here or at a URL; or images.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run folder, made or gone on with.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a recipe key: mask.ratio=0.6.")
@click.option("--split", default="train", show_default=True, help="Split of the shards to learn from.")
@click.option("--resume", default="auto", show_default=True, help="auto, none, or the path of a checkpoint.")
@launching
@click.option("--dry-run", is_flag=True, help="Say what the run would take, as `mae-pipe plan` does; touch nothing.")
@click.option("--plugin", "plugins", multiple=True, type=click.Path(path_type=Path), help="A Python file with plugins.")
def pretrain(
    recipe: str,
    shards: Path | str,
    out: Path,
    changes: tuple[str, ...],
    split: str,
    resume: str,
    job: Job,
    dry_run: bool,
    plugins: tuple[Path, ...],
) -> None:
    """Pretrain a masked autoencoder on shards.

    RECIPE is a built-in recipe (`mae-pipe recipes`) or a TOML file. Shards at a URL (https, s3, gs, az, hf) are fetched
    as they are needed (docs/remote.md); images in no shards (a folder, or another of docs/sources.md) are indexed once,
    in ~/.cache/mae-pipe, and read where they lie. A run that was stopped goes on where it was when the same command is
    given again. Runs as it is, with --nproc N, or under torchrun, deepspeed and srun.
    """
    from mae_pipe import launch
    from mae_pipe import recipe as recipes
    from mae_pipe.catalog import Catalog

    chosen = recipes.load(recipe, changes, task="pretrain")
    assert isinstance(chosen, recipes.Pretrain)
    if dry_run:
        from mae_pipe.planning import rehearsal

        processes = job.processes * job.nodes if job.several else launch.place().world
        rehearsal.show(chosen, shards, split, processes=processes, catalog=Catalog(plugins))
        return
    start(job)

    from rich.console import Console

    from mae_pipe import pretrain as learn

    learn(chosen, shards, out, split=split, resume=resume, plugins=plugins, console=Console(stderr=True))
    if launch.place().rank == 0:
        click.echo(f"done: {out}/encoder.safetensors; next: mae-pipe probe {out}, or mae-pipe report {out}", err=True)
