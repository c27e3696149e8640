"""``mae-pipe embed``."""

from __future__ import annotations

import time
from pathlib import Path

import click

from mae_pipe.cli.launching import launching, start
from mae_pipe.cli.places import PLACE
from mae_pipe.spawning import Job

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("run", type=PATH)
@click.argument("source", metavar="SRC", type=PLACE)
@click.option(
    "--out", type=PATH, help="A folder for each split is made in it.  [default: RUN/features, where probes look]"
)
@click.option(
    "--pool",
    "kind",
    type=click.Choice(["token", "mean", "tokens"]),
    default="mean",
    show_default=True,
    help="The class token, the mean of the patch tokens, or all tokens.",
)
@click.option(
    "--before-norm", is_flag=True, help="Without the encoder's final norm, as global-pool finetuning sees it."
)
@click.option("--split", "splits", multiple=True, metavar="NAME", help="Only that split; may be repeated.")
@click.option("--size", type=click.IntRange(min=1), metavar="PX", help="Side of the image.  [default: RUN's]")
@click.option(
    "--views",
    type=click.IntRange(min=0),
    default=0,
    metavar="K",
    help="K random crops of every image by RUN's recipe, instead of its centre.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Of the numbers that are kept; they are computed in float32.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["safetensors", "parquet"]),
    default="safetensors",
    show_default=True,
    help="Parquet is for other programs: key, label, feature.",
)
@click.option("--workers", type=click.IntRange(min=0), help="Threads that decode, of each process.  [default: RUN's]")
@launching
@click.option("--plugin", "plugins", multiple=True, type=PATH, help="A Python file with plugins.")
def embed(
    run: Path,
    source: Path | str,
    out: Path | None,
    kind: str,
    before_norm: bool,
    splits: tuple[str, ...],
    size: int | None,
    views: int,
    dtype: str,
    form: str,
    workers: int | None,
    job: Job,
    plugins: tuple[Path, ...],
) -> None:
    """Compute the features of images once, by the frozen encoder of RUN.

    RUN is a pretrained, imported, probed or finetuned run. SRC is shards, a folder of images, a tar, a zip, a table, or
    a URL of shards. Files, keys and labels are in docs/features.md; any number of processes writes the same bytes, and
    the same command goes on with a build that was stopped.
    """
    from mae_pipe import launch
    from mae_pipe.catalog import Catalog

    start(job)

    from mae_pipe.cli.progress import bar
    from mae_pipe.features.embed import embed as extract

    first, began = launch.place().rank == 0, time.monotonic()
    if out is None and form == "parquet":
        raise click.UsageError("--format parquet wants --out, as probes read safetensors")
    with bar("embedding", "images") as show:
        made = extract(
            run,
            source,
            catalog=Catalog(plugins),
            out=out,
            kind=kind,  # type: ignore[arg-type]
            normed=not before_norm,
            dtype=dtype,  # type: ignore[arg-type]
            format=form,  # type: ignore[arg-type]
            splits=splits,
            size=size,
            views=views,
            workers=workers,
            progress=lambda split: lambda done, total: show(done, total, split) if first else None,
        )
    if first:
        for folder, manifest in made.items():
            count = sum(shard.bytes for shard in manifest.shards)
            click.echo(f"{folder}: {manifest.count:,} images, {count / 1e6:,.1f} MB in {len(manifest.shards)} files")
        click.echo(f"{time.monotonic() - began:.0f} s", err=True)
