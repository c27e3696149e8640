"""``mae-pipe reconstruct``."""

from __future__ import annotations

from pathlib import Path

import click

from mae_pipe.cli.places import PLACE


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--out", default="reconstructions.png", show_default=True, type=click.Path(path_type=Path), help="The PNG to write."
)
@click.option("--shards", type=PLACE, help="Take images from these shards as well.")
@click.option("--split", default="val", show_default=True, help="Split of --shards.")
@click.option("--count", default=8, show_default=True, type=click.IntRange(min=1), help="Images from --shards.")
@click.option("--seed", type=int, help="Hide other patches than the run's seed does.")
@click.option("--ratio", type=float, help="Hide another share of patches.")
@click.option("--mask", metavar="NAME", help="Hide by another mask sampler (`mae-pipe plugins`).")
@click.option("--plugin", "plugins", multiple=True, type=click.Path(path_type=Path), help="A Python file with plugins.")
def reconstruct(
    run: Path,
    images: tuple[Path, ...],
    out: Path,
    shards: Path | str | None,
    split: str,
    count: int,
    seed: int | None,
    ratio: float | None,
    mask: str | None,
    plugins: tuple[Path, ...],
) -> None:
    """Draw what a pretrained RUN predicts for IMAGES: input, masked, prediction, pasted.

    Patches may be hidden otherwise than in training, to see what the model can do.
    """
    from mae_pipe import reconstruct as draw

    path = draw(
        run,
        images,
        out,
        plugins=plugins,
        shards=shards,
        split=split,
        count=count,
        seed=seed,
        ratio=ratio,
        mask=mask,
    )
    click.echo(path)
