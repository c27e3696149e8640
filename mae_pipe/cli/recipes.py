"""``mae-pipe recipes``: the built-in recipes; one with every value and its source; what differs between two; a copy."""

from __future__ import annotations

from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mae_pipe import provenance, recipe

_CHANGES = click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a value first.")


@click.group(invoke_without_command=True)
@click.pass_context
def recipes(context: click.Context) -> None:
    """List the built-in recipes; show one, compare two, or copy one to a file of yours."""
    if context.invoked_subcommand is None:
        context.invoke(list_recipes)


@recipes.command("list")
@click.argument("wanted", metavar="[TEXT]", default="")
@click.option("--task", type=click.Choice(list(recipe.TASKS)), help="Of one task only.")
def list_recipes(wanted: str = "", task: str | None = None) -> None:
    """List the built-in recipes, those of a kind together; with TEXT those whose name or description has it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title, style in (("name", "bold"), ("task", "dim"), ("about", "")):
        table.add_column(title, style=style, overflow="fold", no_wrap=title != "about")
    order = list(recipe.TASKS)
    groups = []
    for family, names in recipe.families().items():
        rows = [
            (name, of, about)
            for name, (of, about) in ((name, recipe.heading(name)) for name in names)
            if task in (None, of) and wanted.lower() in f"{family} {name} {about}".lower()
        ]
        if rows:
            groups.append((min(order.index(row[1]) for row in rows), family, rows))
    for _, family, rows in sorted(groups):
        table.add_row(Text(f"{family}:", style="italic"))
        for row in rows:
            table.add_row(*map(Text, row))
        table.add_section()
    if groups:
        _print(table)
    else:
        click.echo("no built-in recipe is like that; mae-pipe recipes lists all", err=True)


@recipes.command()
@click.argument("name", metavar="RECIPE")
@_CHANGES
@click.option("--images", type=click.IntRange(min=1), help="Of an epoch, for the steps.  [default: ImageNet-1k's]")
@click.option("--plain", is_flag=True, help="Values only.")
def show(name: str, changes: tuple[str, ...], images: int | None, plain: bool) -> None:
    """Print RECIPE, a built-in name or a file, as complete TOML: save it, change it, run it.

    The comment at each value says where it comes from: what the recipe's file says beside it or beside its table, a
    default of mae-pipe, or --set. RECIPE may be a run folder too.
    """
    click.echo(provenance.read(name, changes).as_toml(plain=plain, images=images), nl=False)


@recipes.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
def diff(first: str, second: str) -> None:
    """Print what differs between A and B: built-in names, files, or run folders."""
    a, b = provenance.read(first), provenance.read(second)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("key", first, second, f"source in {first}", f"source in {second}"):
        table.add_column(title, overflow="fold", style="dim" if title.startswith("source") else "")
    for row in provenance.differences(a, b):
        table.add_row(*map(Text, row))
    if table.row_count:
        _print(table)
    else:
        click.echo("they have the same values")


@recipes.command()
@click.argument("name", metavar="RECIPE")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Overwrite FILE.")
def copy(name: str, file: Path, force: bool) -> None:
    """Write RECIPE's file to FILE.toml as it is, with its comments, to be edited."""
    from mae_pipe.disk import write_whole

    if file.suffix != ".toml":
        raise click.BadParameter(f"{file} does not end in .toml", param_hint="FILE")
    if file.exists() and not force:
        raise click.BadParameter(f"{file} is there already; give --force to overwrite it", param_hint="FILE")
    write_whole(file, recipe.text_of(name)[0].encode())
    click.echo(f"{file}: edit it, then give it in place of a recipe's name", err=True)


def _print(table: Table) -> None:
    Console(width=None if Console().is_terminal else 140).print(table)
