"""``mae-pipe shard`` and ``mae-pipe verify``."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from mae_pipe.wording import counted

if TYPE_CHECKING:
    from mae_pipe.data.manifest import Manifest, Split

PLAIN_EVERY = 30.0  # seconds between lines where there is no terminal
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
    planes: bool,
    raw: float,
    marks: bool,
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
    from mae_pipe.catalog import Catalog
    from mae_pipe.options import parsed
    from mae_pipe.sharding import build

    began = time.monotonic()
    try:
        with bar("sharding", "images") as show:
            manifest = build(
                source,
                out,
                format=format_name,
                catalog=Catalog(plugins),
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
                planes=planes,
                raw=raw,
                marks=marks,
                source_name=source_name,
                source_options=parsed(changes),
                overwrite=overwrite,
                progress=lambda done, refused, total: show(done, total, f"{refused:,} refused" if refused else ""),
            )
    except KeyboardInterrupt:
        click.echo("stopped; finished shards are kept, the same command goes on", err=True)
        raise
    summary(manifest, out, time.monotonic() - began)


@click.command()
@click.argument("folder", metavar="OUT", type=FOLDER)
@click.option("--plugin", "plugins", multiple=True, type=FOLDER, metavar="FILE", help="A Python file with plugins.")
def verify(folder: Path, plugins: tuple[Path, ...]) -> None:
    """Check every hash, count, key and checksum of the shards in OUT.

    Names the shards and images that are damaged, and then ends with 4.
    """
    from mae_pipe.catalog import Catalog
    from mae_pipe.data.manifest import Manifest
    from mae_pipe.verifying import verify as check

    with bar("checking", "MB") as show:
        damage = check(
            folder,
            catalog=Catalog(plugins),
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
    manifest = Manifest.load(folder)
    for name, split in manifest.splits.items():
        held = f"{counted(split.images, 'image')} in {counted(len(split.shards), f'{manifest.format} shard')}"
        click.echo(f"ok: {name}: {held}")


class _Rate(ProgressColumn):
    """Things a second, over the last seconds."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} {self._unit}/s" if task.speed else "")


class _Lines:
    """Progress as a line now and then, where nobody watches a bar."""

    def __init__(self, console: Console, title: str, unit: str) -> None:
        self._console, self._title, self._unit = console, title, unit
        self._began = self._last = time.monotonic()

    def __call__(self, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if now - self._last >= PLAIN_EVERY and done < total:
            self._last = now
            left = (now - self._began) / max(done, 1) * (total - done)
            words = [f"{self._title}: {done:,} of {total:,} {self._unit}", note, f"about {left:.0f} s left"]
            self._console.print(", ".join(filter(None, words)))


class _Bar:
    """Progress as a bar, drawn ten times a second at most however often it is told."""

    def __init__(self, progress: Progress, title: str) -> None:
        self._progress, self._task = progress, progress.add_task(title, total=None, note="")
        self._last = 0.0

    def __call__(self, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if now - self._last >= 0.1 or done == total:
            self._last = now
            self._progress.update(self._task, completed=done, total=total, note=note)


@contextmanager
def bar(title: str, unit: str) -> Iterator[_Bar | _Lines]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console, title, unit)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        _Rate(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("[yellow]{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Bar(progress, title)


def summary(manifest: Manifest, out: Path, seconds: float) -> None:
    from mae_pipe.data.place import size_of

    for name, split in manifest.splits.items():
        size = size_of(sum(shard.bytes for shard in split.shards))
        held = f"{counted(split.images, 'image')}{_what(manifest, split)}"
        click.echo(f"{name}: {held} in {counted(len(split.shards), f'{manifest.format} shard')}, {size}")
        if split.converted:
            click.echo("  converted: " + ", ".join(f"{count:,} {what}" for what, count in split.converted.items()))
        _cost(split)
        _refused(split)
    click.echo(f"{seconds:.0f} s; all of it is in {out / 'manifest.json'}")
    click.echo(f"next: mae-pipe pretrain RECIPE --shards {out} --out RUN")


def _what(manifest: Manifest, split: Split) -> str:
    """Channels, classes and maps of a split, where they are there."""
    said = "" if manifest.channels == 3 else f" of {counted(manifest.channels, 'channel')}"
    if split.labelled:
        several = ", any number an image," if manifest.labelling == "multi" else ""
        said += f"{' and' if said else ' of'} {counted(len(manifest.classes), 'class')}{several}"
    elif not split.maps:
        said += ", no labels"
    return said + (f" with maps of {counted(len(manifest.map_classes), 'class')}" if split.maps else "")


def _cost(split: Split) -> None:
    """What conversion costs in bytes and in fidelity, where there was any."""
    from mae_pipe.data.fidelity import SIDE, decibels

    if not split.compared:
        return
    stored = sum(shard.bytes for shard in split.shards) / max(split.images, 1)
    source = split.source_bytes / max(split.images + len(split.refused), 1)
    click.echo(f"  an image takes {stored / 1000:,.1f} kB; its file had {source / 1000:,.1f} kB")
    found = decibels(split.squared_error * split.compared, split.compared)
    far = "without loss" if found is None or found == float("inf") else f"{found:.1f} dB from the originals"
    click.echo(f"  {far}, in views of {SIDE} pixels of {counted(split.compared, 'image')}")


def _refused(split: Split) -> None:
    if not split.refused:
        return
    click.echo(f"  refused: {len(split.refused):,}")
    reasons = Counter(entry.reason.partition(":")[0] for entry in split.refused)
    for reason, count in reasons.most_common():
        first = next(entry for entry in split.refused if entry.reason.partition(":")[0] == reason)
        click.echo(f"    {count:,} {reason}, first {first.path}")
