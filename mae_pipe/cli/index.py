"""``mae-pipe index``."""

from __future__ import annotations

import time
from pathlib import Path

import click

from mae_pipe.cli.progress import bar
from mae_pipe.cli.shard import FOLDER
from mae_pipe.cli.summary import summary


@click.command()
@click.argument("shards", metavar="SHARDS...", nargs=-1, required=True)
@click.option("--out", required=True, type=FOLDER, help="Folder for the manifest and the index.")
@click.option("--split", metavar="NAME", help="What all of them are.  [default: as each one's name says, else train]")
@click.option(
    "--label",
    default="",
    metavar="WHERE",
    help="Of tars: cls, txt, json:FIELD, folder, none; of betons: a field, none.  [default: .cls, or label in .json; "
    "the field of numbers]",
)
@click.option(
    "--image", default="", metavar="ENDING", help="Of the images, where a sample has several; of betons: their field."
)
@click.option("--class-names", type=FOLDER, metavar="FILE", help="A class name a line, where labels are numbers.")
@click.option(
    "--channels", type=click.IntRange(min=1), metavar="C", help="Of the images.  [default: 3, grey images too]"
)
@click.option("--base", metavar="FOLDER_OR_URL", help="Where the shards will be read, where that is not here.")
@click.option(
    "--decode/--no-decode", default=True, help="Decode every image, or one of 50 and of the others look at headers."
)
@click.option(
    "--marks/--no-marks", default=True, help="Note where rows of JPEG blocks begin, so that crops decode faster."
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes; they change no byte.  [default: one a core]")
@click.option("--overwrite", is_flag=True, help="Replace the index that OUT holds.")
@click.option("--plugin", "plugins", multiple=True, type=FOLDER, metavar="FILE", help="A Python file with plugins.")
def index(
    shards: tuple[str, ...],
    out: Path,
    split: str | None,
    label: str,
    image: str,
    class_names: Path | None,
    channels: int | None,
    base: str | None,
    decode: bool,
    marks: bool,
    workers: int | None,
    overwrite: bool,
    plugins: tuple[Path, ...],
) -> None:
    """Index WebDataset tars, or betons of FFCV's, that others made, without rewriting them.

    SHARDS are .tar or .beton files, or folders or URLs of them (s3://bucket/set, https://host/train-{000..127}.tar),
    which are copied here once and stay where they are. Every header, count and image is checked, and OUT is then used
    as a folder of shards is: mae-pipe pretrain RECIPE --shards OUT. Images that would have to be converted (CMYK,
    rotated, 16 bits, ...) are left out by name; `mae-pipe shard` converts them. A file that is cut or damaged is an
    error that names it. Betons are read without ffcv.
    """
    from mae_pipe import index as build

    began = time.monotonic()
    with bar("indexing", "images") as show:
        manifest = build(
            shards,
            out,
            split=split,
            image=image,
            label=label,
            class_names=class_names,
            channels=channels,
            base=base,
            decode=decode,
            marks=marks,
            workers=workers,
            overwrite=overwrite,
            plugins=plugins,
            say=lambda text: click.echo(text, err=True),
            progress=lambda done, refused, total: show(done, total, f"{refused:,} refused" if refused else ""),
        )
    summary(manifest, out, time.monotonic() - began)
