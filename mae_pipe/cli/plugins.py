"""``mae-pipe plugins``: what is installed, read from source, without importing any of it."""

from __future__ import annotations

from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mae_pipe.catalog import Catalog


@click.command()
@click.option(
    "--plugin",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also list the plugins of a local Python file; may be repeated.",
)
def plugins(files: tuple[Path, ...]) -> None:
    """List the installed plugins: mask samplers, targets, heads, shard formats."""
    console = Console()
    catalog = Catalog(files=files)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title, style in (("kind", "dim"), ("name", "bold"), ("package", ""), ("summary", "")):
        table.add_column(title, style=style, overflow="fold", no_wrap=title in ("kind", "name"))
    for entry in sorted(catalog.entries.values(), key=lambda e: (e.kind, e.name)):
        table.add_row(*map(Text, (entry.kind, entry.name, entry.package, entry.summary)))
    console.print(table)
    for where, why in sorted(catalog.broken.items()):
        console.print(Text.assemble(("not usable: ", "bold red"), (where, "bold"), f": {why}"), soft_wrap=True)
