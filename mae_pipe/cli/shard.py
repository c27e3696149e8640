"""``mae-pipe shard`` and ``mae-pipe verify``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from mae_pipe.cli.places import PLACE
from mae_pipe.cli.progress import bar
from mae_pipe.cli.summary import summary
from mae_pipe.wording import counted

FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("source", metavar="SRC", type=FOLDER)
@click.argument("out", metavar="OUT", type=FOLDER)
@click.option(
    "--format",
    "format_name",
    default="webdataset",
    show_default=True,
    metavar="NAME",
    help="webdataset, ffcv, or a plugin's.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes; they change no byte.  [default: one a core]")
@click.option("--per-shard", type=click.IntRange(min=1), default=2000, show_default=True, help="Source files a shard.")
@click.option("--max-side", type=click.IntRange(min=1), metavar="PX", help="Shrink images whose longer side is longer.")
@click.option(
    "--short-side", type=click.IntRange(min=1), metavar="PX", help="Shrink images whose shorter side is longer."
)
@click.option(
    "--quality",
    type=click.IntRange(1, 100),
    help="Of JPEGs that are made anew (95 if not given); if given, lossless images become JPEGs too.",
)
@click.option(
    "--split",
    "splits",
    multiple=True,
    metavar="NAME[=SHARE]",
    help="NAME: SRC is that split; val=0.1: hold out a tenth; may be repeated. Not for a SRC with train/ and val/.",
)
@click.option(
    "--channels",
    type=click.IntRange(min=1),
    metavar="C",
    help="Of the images, which may then be .npy files too; others are refused.  [default: 3, grey images too]",
)
@click.option(
    "--value-range",
    type=(float, float),
    metavar="LO HI",
    help="What become 0 and 255, of numbers that are not 8 bits.",
)
@click.option(
    "--labels",
    type=FOLDER,
    metavar="FILE.csv",
    help="Lines of PATH,CLASS;CLASS;...: images with any number of classes. Folders are then no classes.",
)
@click.option(
    "--maps", type=FOLDER, metavar="FOLDER", help="A map of classes for every image: FOLDER/x.png for SRC/x.jpg."
)
@click.option(
    "--class-names", type=FOLDER, metavar="FILE", help="A class name a line, for --maps or --labels, in their order."
)
@click.option(
    "--ignore-class",
    "ignore_classes",
    type=click.IntRange(0, 254),
    multiple=True,
    metavar="N",
    help="A class of --maps that becomes 255, of no class; higher ones move down by one. May be repeated.",
)
@click.option(
    "--planes",
    is_flag=True,
    help="Store pixels as planes of YCbCr 4:2:0: the fastest to read, 1.5 bytes a pixel; other tools cannot.",
)
@click.option(
    "--raw",
    type=click.FloatRange(0, 1),
    default=0.0,
    metavar="SHARE",
    help="With --format ffcv: this share of the images as raw pixels (1: FFCV's raw mode, 0.5: half of them).",
)
@click.option(
    "--shuffle",
    is_flag=True,
    help="Spread images over the shards at random: for shards that are read from elsewhere (docs/remote.md).",
)
@click.option(
    "--marks/--no-marks",
    default=True,
    help="Note where rows of JPEG blocks begin, so that crops decode faster; half a percent more bytes.  [default: on]",
)
@click.option(
    "--source",
    "source_name",
    metavar="NAME",
    help="How SRC is laid out: folder, zip, tar, table, webdataset, parquet, imagenet, ...  [default: as it looks]",
)
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="An option of the source, as label=fine_label."
)
@click.option("--overwrite", is_flag=True, help="Replace the shards that OUT holds.")
@click.option("--plugin", "plugins", multiple=True, type=FOLDER, metavar="FILE", help="A Python file with plugins.")
def shard(
    source: Path,
    out: Path,
    format_name: str,
    workers: int | None,
    per_shard: int,
    max_side: int | None,
    short_side: int | None,
    quality: int | None,
    splits: tuple[str, ...],
    channels: int | None,
    value_range: tuple[float, float] | None,
    labels: Path | None,
    maps: Path | None,
    class_names: Path | None,
    ignore_classes: tuple[int, ...],
    planes: bool,
    raw: float,
    marks: bool,
    shuffle: bool,
    source_name: str | None,
    changes: tuple[str, ...],
    overwrite: bool,
    plugins: tuple[Path, ...],
) -> None:
    """Build shards in OUT from the images in SRC.

    SRC/CLASS/*.jpg has labels, SRC/*.jpg has none, SRC/train/... and SRC/val/... are splits. SRC may also be a zip or
    tar of such folders, a table (.csv, .jsonl), Parquet files, WebDataset tars, or ImageNet's own tars
    (docs/sources.md). Every image is decoded and checked: what cannot be used is named in OUT/manifest.json and counted
    below, and stops nothing. A build that was stopped goes on where it was when the same command is given again.
    """
    from mae_pipe import shard as build
    from mae_pipe.options import parsed

    began = time.monotonic()
    try:
        with bar("sharding", "images") as show:
            manifest = build(
                source,
                out,
                format=format_name,
                workers=workers,
                per_shard=per_shard,
                quality=quality,
                max_side=max_side,
                short_side=short_side,
                splits=splits,
                channels=channels,
                value_range=value_range,
                labels=labels,
                maps=maps,
                class_names=class_names,
                ignore_classes=ignore_classes,
                planes=planes,
                raw=raw,
                marks=marks,
                shuffle=shuffle,
                source_name=source_name,
                source_options=parsed(changes),
                overwrite=overwrite,
                plugins=plugins,
                progress=lambda done, refused, total: show(done, total, f"{refused:,} refused" if refused else ""),
            )
    except KeyboardInterrupt:
        click.echo("stopped; finished shards are kept, the same command goes on", err=True)
        raise
    summary(manifest, out, time.monotonic() - began)


@click.command()
@click.argument("folder", metavar="SHARDS", type=PLACE)
@click.option("--plugin", "plugins", multiple=True, type=FOLDER, metavar="FILE", help="A Python file with plugins.")
def verify(folder: Path | str, plugins: tuple[Path, ...]) -> None:
    """Check every hash, count, key and checksum of SHARDS, a folder or a URL.

    Names the shards and images that are damaged, and then ends with 4.
    """
    from mae_pipe import verify as check
    from mae_pipe.catalog import Catalog
    from mae_pipe.data.manifest import Manifest
    from mae_pipe.direct import shards_of

    catalog = Catalog(plugins)
    place = shards_of(folder, catalog) if isinstance(folder, str) else folder
    with bar("checking", "MB") as show:
        damage = check(
            place,
            plugins=plugins,
            progress=lambda done, total: show(done // 10**6, -(-total // 10**6), ""),
        )
    for sentence in damage:
        click.echo(f"damaged: {sentence}")
    if damage:
        click.echo(
            f"{counted(len(damage), 'damage')} in {folder}; copy what is named again, or build the shards again",
            err=True,
        )
        sys.exit(4)
    manifest = Manifest.load(place)
    for name, split in manifest.splits.items():
        held = f"{counted(split.images, 'image')} in {counted(len(split.shards), f'{manifest.format} shard')}"
        click.echo(f"ok: {name}: {held}")
