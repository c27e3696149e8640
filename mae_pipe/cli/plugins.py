"""``mae-pipe plugins``: what is installed, read from source; show one, write a new one, check one."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mae_pipe.catalog import Catalog, Entry
from mae_pipe.declared import KINDS
from mae_pipe.docstrings import prose
from mae_pipe.errors import PluginError, closest
from mae_pipe.options import parsed

if TYPE_CHECKING:
    from mae_pipe.testing.conformance import Result

F = TypeVar("F", bound=Callable[..., Any])

SIGNS = {"passed": ("passed", "green"), "failed": ("FAILED", "bold red"), "skipped": ("skipped", "dim")}


def _plugin_files(command: F) -> F:
    return click.option(
        "--plugin",
        "files",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A local Python file with plugins too; may be repeated.",
    )(command)


def _options(command: F) -> F:
    return click.option(
        "--set", "changes", multiple=True, metavar="OPTION=VALUE", help="An option of the plugin; may be repeated."
    )(command)


@click.group(invoke_without_command=True)
@_plugin_files
@click.pass_context
def plugins(context: click.Context, files: tuple[Path, ...]) -> None:
    """List the installed plugins: masks, targets, heads, methods, shard formats, sources; show, write or check one."""
    if context.invoked_subcommand is None:
        context.invoke(list_plugins, files=files)
    elif files:
        raise click.UsageError(f"--plugin belongs behind the word {context.invoked_subcommand!r}", context)


@plugins.command("list")
@_plugin_files
def list_plugins(files: tuple[Path, ...]) -> None:
    """List every plugin by kind and name, and what is not usable and why. Nothing is imported."""
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


@plugins.command()
@click.argument("kind")
@click.argument("name")
@click.option("--picture", type=click.Path(path_type=Path), metavar="PNG", help="Draw what a mask sampler hides.")
@_options
@_plugin_files
def show(kind: str, name: str, picture: Path | None, changes: tuple[str, ...], files: tuple[Path, ...]) -> None:
    """Show the plugin NAME of a KIND (mask, target, head, shards, source): what it does, and its options.

    Nothing is imported, unless a picture is wanted.
    """
    catalog = Catalog(files=files)
    _known(kind)
    entry = catalog.entry(kind, name)
    if picture is not None:
        _draw(catalog, entry, parsed(changes), picture)
    console = Console()
    console.print(Text.assemble((f"{kind} {name}", "bold"), f"  {entry.package} {entry.version}".rstrip()), "")
    console.print(Padding(Text(prose(entry.doc) or "(it has no docstring)"), (0, 2)))
    if entry.options:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for title, style in (("option", "bold"), ("type", ""), ("default", ""), ("about", "")):
            table.add_column(title, style=style, overflow="fold", no_wrap=title != "about")
        for option in entry.options:
            default = "must be given" if option.default is None else option.default
            table.add_row(*map(Text, (option.name, option.type or "any", default, option.about)))
        console.print(Padding(table, (0, 2)))
    else:
        console.print(Padding("\nIt takes no options.\n", (0, 2)))
    for line in _in_a_recipe(entry):
        console.print(Padding(Text(line, style="cyan"), (0, 2)))
    console.print()
    for line in (f"{entry.module}.{entry.cls}, for mae_pipe.api {entry.api[0]}.{entry.api[1]}", str(entry.path or "")):
        console.print(Text(f"  {line}", style="dim"), soft_wrap=True)


def _known(kind: str) -> None:
    if kind not in KINDS.values():
        kinds = ", ".join(KINDS.values())
        raise PluginError(f"there is no kind of plugin {kind!r}{closest(kind, KINDS.values())}; kinds are {kinds}")


def _draw(catalog: Catalog, entry: Entry, options: dict[str, Any], path: Path) -> None:
    if entry.kind != "mask":
        raise PluginError(f"--picture draws what a mask hides, and {entry.name!r} is a {entry.kind}; leave it out")
    from mae_pipe import specimens

    chosen = "".join(f"  {name} = {_toml(value)}" for name, value in options.items())
    sampler = catalog.build(entry.kind, entry.name, options)
    specimens.save_mask(sampler, f"{entry.kind} {entry.name}{chosen}", path)


def _in_a_recipe(entry: Entry) -> list[str]:
    """How a recipe or a command names a plugin, with its options as they are by default."""
    if entry.kind not in ("mask", "target", "head"):
        flag = {"shards": "--format", "source": "--source"}.get(entry.kind)
        return [f"mae-pipe shard IMAGES SHARDS {flag} {entry.name}"] if flag else []
    pairs = []
    for option in entry.options:
        try:
            value = ast.literal_eval(option.default or "None")
            if value is not None:
                pairs.append(f"{option.name} = {_toml(value)}")
        except (ValueError, TypeError):  # a default that is computed
            continue
    return [f"[{entry.kind}]", f'name = "{entry.name}"', *([f"options = {{ {', '.join(pairs)} }}"] if pairs else [])]


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value)


@plugins.command()
@click.argument("kind")
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Where; by default mae-pipe-NAME, here.")
def new(kind: str, name: str, out: Path | None) -> None:
    """Write a package with one plugin of a KIND (mask, target, head, method, shards, source), to install and change."""
    from mae_pipe import scaffold

    _known(kind)
    written = scaffold.write(kind, name, out, catalog=Catalog())
    console = Console()
    for path in written.files:
        console.print(Text(f"  {path.relative_to(written.folder.parent)}", style="dim"), soft_wrap=True)
    folder = written.folder
    console.print(f"\nnext: [bold]{escape(f'pip install -e {folder}')}[/]", soft_wrap=True, highlight=False)
    console.print(f"      [bold]mae-pipe plugins check {name}[/]", soft_wrap=True, highlight=False)
    console.print(f"      [bold]{escape(f'pytest {folder}')}[/]", soft_wrap=True, highlight=False)


@plugins.command()
@click.argument("name")
@click.option("--kind", help="Where plugins of several kinds have that name.")
@click.option("--fast", is_flag=True, help="Leave out the checks that take more than a few seconds (ZeRO 3).")
@_options
@_plugin_files
@click.pass_context
def check(
    context: click.Context,
    name: str,
    kind: str | None,
    fast: bool,
    changes: tuple[str, ...],
    files: tuple[Path, ...],
) -> None:
    """Run the conformance suite on the plugin NAME: a table of what holds and what does not, with the reason.

    Ends with 0 when nothing failed, else with 5.
    """
    catalog = Catalog(files=files)
    entry = catalog.entry(kind or _only_kind(catalog, name), name)

    from mae_pipe.testing import conformance

    console = Console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("check", "result", "what holds, or why not"):
        table.add_column(title, overflow="fold", no_wrap=title != "what holds, or why not")
    counts = dict.fromkeys(SIGNS, 0)
    with console.status("") as status:

        def begun(check: str) -> None:
            status.update(f"{entry.kind} {name}: {check}")

        options = parsed(changes)
        results = conformance.run(entry.kind, name, catalog=catalog, options=options, fast=fast, begun=begun)
        for result in results:
            counts[result.outcome] += 1
            _add(table, result)
    console.print(table)
    said = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    console.print(Text.assemble((f"{entry.kind} {name}", "bold"), f" of {entry.package}: {said}"), soft_wrap=True)
    if counts["failed"]:
        context.exit(PluginError.exit_code)


def _add(table: Table, result: Result) -> None:
    sign, style = SIGNS[result.outcome]
    table.add_row(Text(result.check), Text(sign, style=style), Text(result.detail))


def _only_kind(catalog: Catalog, name: str) -> str:
    """The kind of the one plugin of that name."""
    kinds = sorted(kind for kind, known in catalog.entries if known == name)
    if len(kinds) > 1:
        raise PluginError(f"{' and '.join(kinds)} plugins are called {name!r}; say which with --kind {kinds[0]}")
    if not kinds:
        known = sorted({other for _, other in catalog.entries})
        catalog.refuse(name)
        raise PluginError(f"there is no plugin {name!r}{closest(name, known)}; installed are {', '.join(known)}")
    return kinds[0]
