"""The options of probes that learn from features, and what is shown of those that choose among settings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

    from mae_pipe.features.results import Probed


@dataclass(frozen=True)
class Cached:
    """How a probe uses features; ``how`` is empty where it does not."""

    how: str = ""
    views: int = 0
    rates: tuple[float, ...] = ()
    decays: tuple[float, ...] = ()
    aside: float = 0.0


class _Numbers(click.ParamType):  # type: ignore[type-arg]
    """Numbers with commas between them."""

    name = "numbers"

    def convert(
        self, value: str | tuple[float, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(word) for word in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers, such as 0.01,0.1,1", param, ctx)
        if not all(0 <= number < float("inf") for number in numbers):
            self.fail(f"{value!r} has numbers that are below 0 or no numbers", param, ctx)
        return numbers


def caching(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``command`` the options, and the ``cached`` that they make."""

    @click.option("--cached", "plain", is_flag=True, help="Learn from features: computed once, kept in RUN/features.")
    @click.option(
        "--sweep", is_flag=True, help="On features: a linear head for each of many learning rates, trained together."
    )
    @click.option(
        "--logistic", is_flag=True, help="On features: logistic regression by L-BFGS, its L2 chosen on held-out images."
    )
    @click.option(
        "--views",
        type=click.IntRange(min=0),
        default=0,
        metavar="K",
        help="Features of K random crops of every training image.  [default: of its centre]",
    )
    @click.option(
        "--rates", type=_Numbers(), default=(), metavar="LR,LR", help="Values of optimizer.base_lr for --sweep."
    )
    @click.option("--decays", type=_Numbers(), default=(), metavar="WD,WD", help="The same of optimizer.weight_decay.")
    @click.option(
        "--held-out",
        "aside",
        type=click.FloatRange(0, 1, max_open=True),
        metavar="SHARE",
        help="Of the training images, to choose on.  [default: --sweep 0, the eval split; --logistic 0.1]",
    )
    @functools.wraps(command)
    def with_cached(
        *,
        plain: bool,
        sweep: bool,
        logistic: bool,
        views: int,
        rates: tuple[float, ...],
        decays: tuple[float, ...],
        aside: float | None,
        **given: Any,
    ) -> Any:
        chosen = [name for name, on in (("cached", plain), ("sweep", sweep), ("logistic", logistic)) if on]
        how = next((name for name in chosen if name != "cached"), "cached" if plain else "")
        if sweep and logistic:
            raise click.UsageError("--sweep and --logistic are two probes; give one of them")
        if views and how in ("", "logistic"):
            raise click.UsageError("--views goes with --cached or --sweep")
        if (rates or decays) and not sweep:
            raise click.UsageError("--rates and --decays go with --sweep")
        if aside is not None and how in ("", "cached"):
            raise click.UsageError("--held-out goes with --sweep or --logistic")
        if aside is None:
            aside = 0.1 if logistic else 0.0
        return command(cached=Cached(how, views, rates, decays, aside), **given)

    return with_cached


def table_of_settings(result: Probed) -> Table:
    """What each setting reached; the best in bold."""
    from rich import box
    from rich.table import Table

    names = [name for name in result.tried[0] if name not in ("loss", "top1", "top5")]
    varied = [name for name in names if len({row[name] for row in result.tried}) > 1] or names[:1]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"on {result.chosen_on}")
    for name in (*varied, "top-1", "top-5", "loss"):
        table.add_column(name, justify="right")
    for row in result.tried:
        scores = [f"{100 * row['top1']:.2f} %", f"{100 * row['top5']:.2f} %", f"{row['loss']:.4f}"]
        style = "bold" if all(row[name] == result.best[name] for name in names) else ""
        table.add_row(*(f"{row[name]:g}" for name in varied), *scores, style=style)
    return table
