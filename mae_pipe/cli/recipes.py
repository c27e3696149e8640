"""``mae-pipe recipes``: the built-in recipes, and any recipe with every value written out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mae_pipe import recipe


@click.group(invoke_without_command=True)
@click.pass_context
def recipes(context: click.Context) -> None:
    """List the built-in recipes, or show one with all its values."""
    if context.invoked_subcommand is None:
        context.invoke(list_recipes)


@recipes.command("list")
def list_recipes() -> None:
    """List the built-in recipes: name, task, what it is."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title, style in (("name", "bold"), ("task", "dim"), ("about", "")):
        table.add_column(title, style=style, overflow="fold", no_wrap=title != "about")
    for name in recipe.names():
        loaded = recipe.load(name)
        table.add_row(*map(Text, (name, loaded.task, loaded.about)))
    Console().print(table)


@recipes.command()
@click.argument("name", metavar="RECIPE")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a value first; may be repeated.")
def show(name: str, changes: tuple[str, ...]) -> None:
    """Print RECIPE, a built-in name or a file, as complete TOML: save it, change it, run it."""
    click.echo(as_toml(recipe.load(name, changes)), nl=False)


def as_toml(loaded: recipe.Recipe, *, complete: bool = True) -> str:
    """Every value of a recipe as TOML, or those that it gives; reading it gives an equal recipe."""
    return "\n".join(_table(loaded.model_dump(mode="json", exclude_unset=not complete), "")) + "\n"


def _table(values: dict[str, Any], name: str) -> Iterator[str]:
    if name:
        yield f"\n[{name}]"
    for key, value in values.items():
        if not isinstance(value, dict) and value is not None:  # TOML has no null: absent is the same
            yield f"{_key(key)} = {_value(value)}"
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _table(value, f"{name}.{_key(key)}" if name else _key(key))


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if bare else json.dumps(key, ensure_ascii=False)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_key(k)} = {_value(v)}' for k, v in value.items())} }}"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)  # JSON's strings, integers and booleans are TOML's
