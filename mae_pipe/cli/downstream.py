"""``mae-pipe probe`` and ``mae-pipe finetune``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mae_pipe.cli.caching import Cached, caching, table_of_settings
from mae_pipe.cli.launching import launching, start
from mae_pipe.cli.places import PLACE
from mae_pipe.spawning import Job

if TYPE_CHECKING:
    from rich.table import Table

    from mae_pipe.downstream import Result
    from mae_pipe.features.results import Probed

IMAGES = Cached()


def _options(task: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The arguments that both commands take."""
    path = click.Path(path_type=Path)
    options: list[Callable[[Any], Any]] = [
        click.argument("run", type=path),
        click.option("--shards", type=PLACE, help="Labelled shards.  [default: those of RUN]"),
        click.option("--recipe", default=task, show_default=True, help=f"A built-in {task} recipe or a TOML file."),
        click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a recipe key."),
        click.option("--out", type=path, help=f"Run folder.  [default: RUN/{task}, -scratch, -K]"),
        click.option("--from-scratch", is_flag=True, help="Leave the encoder untrained, for comparison."),
        click.option("--labels-per-class", type=click.IntRange(min=1), metavar="K", help="Train on K images a class."),
        click.option("--resume", default="auto", show_default=True, help="auto, none, or the path of a checkpoint."),
        launching,
        click.option("--plugin", "plugins", multiple=True, type=path, help="A Python file with plugins."),
    ]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@click.command()
@_options("probe")
@caching
def probe(**given: Any) -> None:
    """Train a head on the frozen encoder of RUN and measure it.

    RUN is a folder that `mae-pipe pretrain` wrote. Image size, statistics and the encoder's shape are RUN's.

    With --cached, --sweep or --logistic the encoder sees every image once, and what follows takes seconds
    (docs/features.md).
    """
    _run("probe", **given)


@click.command()
@_options("finetune")
def finetune(**given: Any) -> None:
    """Train the encoder of RUN with a head on labelled shards and measure it.

    RUN is a folder that `mae-pipe pretrain` wrote. Image size, statistics and the encoder's shape are RUN's. With
    --from-scratch RUN may be the name or file of a pretraining recipe, for its shape; give --shards and --out.
    """
    _run("finetune", **given)


def _run(
    task: str,
    *,
    run: Path,
    shards: Path | str | None,
    recipe: str,
    changes: tuple[str, ...],
    out: Path | None,
    from_scratch: bool,
    labels_per_class: int | None,
    resume: str,
    job: Job,
    plugins: tuple[Path, ...],
    cached: Cached = IMAGES,
) -> None:
    from mae_pipe import launch, runs
    from mae_pipe import recipe as recipes

    if labels_per_class:
        changes += (f"labels_per_class={labels_per_class}",)
    chosen = recipes.load(recipe, changes, task=task)
    assert isinstance(chosen, recipes.Downstream)
    runs.pretraining_of(run, from_scratch=from_scratch)  # before any process is started
    start(job)

    from rich.console import Console

    import mae_pipe

    shared: dict[str, Any] = {"shards": shards, "out": out, "from_scratch": from_scratch, "plugins": plugins}
    shared["console"] = Console(stderr=True)
    chosen_by: dict[str, Any] = {"rates": cached.rates, "decays": cached.decays, "held_out": cached.aside}
    result: Result
    shown: Probed | None = None
    if cached.how == "sweep":
        result = shown = mae_pipe.sweep(run, chosen, **chosen_by, views=cached.views, **shared)
    elif cached.how == "logistic":
        result = shown = mae_pipe.logistic(run, chosen, held_out=cached.aside, **shared)
    elif task == "probe":
        on_features: dict[str, Any] = {"cached": cached.how == "cached", "views": cached.views}
        result = mae_pipe.probe(run, chosen, resume=resume, **on_features, **shared)
    else:
        result = mae_pipe.finetune(run, chosen, resume=resume, **shared)
    if launch.place().rank == 0:
        if shown is not None:
            Console().print(table_of_settings(shown))
            for note in shown.notes:
                click.echo(note)
        Console().print(table_of(run, result))
        click.echo(f"done: {result.folder}; next: mae-pipe report {run if run.is_dir() else result.folder}", err=True)


def table_of(run: Path, result: Result) -> Table:
    """The result, and beside it the other downstream runs in the same run folder."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from mae_pipe import outcome

    inside = result.folder.resolve().parent == run.resolve()
    found = outcome.results(run if inside else result.folder)
    title = f"measured on {result.images:,} images of {result.split!r}"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title)
    if not found:  # a head with metrics of its own
        table.add_column("metric")
        table.add_column("mean", justify="right")
        for name, value in result.metrics.items():
            table.add_row(Text(name), f"{value:.4f}")
        return table
    for heading, justify in (
        ("run", "left"),
        ("", "left"),
        ("labels a class", "right"),
        (" or ".join(sorted({one.metric for one in found})), "right"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    table.add_column("top-5", justify="right")
    for one in found:
        table.add_row(
            Text(one.folder),
            one.name,
            str(one.labels_per_class or "all"),
            f"{100 * one.score:.2f} %" + (f" ± {100 * one.margin:.1f}" if one.is_share else ""),
            "" if one.top5 is None else f"{100 * one.top5:.2f} %",
            style="bold" if one.folder == result.folder.name else "",
        )
    return table
