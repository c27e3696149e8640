"""``mae-pipe check``: whether a recipe's model, or a run's, can learn at all."""

from __future__ import annotations

from pathlib import Path

import click

from mae_pipe.cli.places import PLACE


@click.command()
@click.argument("subject", metavar="RUN|RECIPE")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a recipe key; not for a run.")
@click.option("--shards", type=PLACE, help="Look at these images; default: a run's own, or noise.")
@click.option("--plugin", "plugins", multiple=True, type=click.Path(path_type=Path), help="A Python file with plugins.")
@click.pass_context
def check(
    context: click.Context, subject: str, changes: tuple[str, ...], shards: Path | str | None, plugins: tuple[Path, ...]
) -> None:
    """Check a pretraining run's folder, or a recipe, for what would train to nothing.

    The same checks run before the first step of every training: positions matter and are the published ones,
    predictions differ by position, the target varies, the first loss is an untrained model's, every parameter learns.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mae_pipe import inspection
    from mae_pipe.catalog import Catalog

    looked_at, findings = inspection.inspect(subject, changes, shards=shards, catalog=Catalog(plugins))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("", "check", "found"):
        table.add_column(title, overflow="fold")
    bad = 0
    for finding in findings:
        bad += not finding.holds
        mark = Text("ok", "green") if finding.holds else Text("wrong", "bold red")
        table.add_row(mark, Text(finding.name), Text(finding.detail, "dim" if finding.holds else ""))
    console = Console(width=None if Console().is_terminal else 140)
    console.print(looked_at, highlight=False)
    console.print(table)
    if bad:
        click.echo(
            f"mae-pipe: {bad} {'checks do' if bad > 1 else 'check does'} not hold; it would train to nothing", err=True
        )
        context.exit(8)
