"""What a build of shards made, for people."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mae_pipe.wording import counted

if TYPE_CHECKING:
    from mae_pipe.data.manifest import Manifest, Split


def summary(manifest: Manifest, out: Path, seconds: float) -> None:
    from mae_pipe.wording import size_of

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
