"""What a benchmark of formats found, for people and for programs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mae_pipe.wording import counted, size_of

UNSTEADY = 1.3  # times as fast as the slowest round

if TYPE_CHECKING:
    from mae_pipe.benching.choice import Choice, Figure
    from mae_pipe.benching.data import Bench


def show(found: Bench, about: str, wanted: float | None) -> None:
    """Print the table and what follows from it; ``about`` says how it was measured."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("format")
    for title in ("an image", "the split", "fidelity", *(f"images/s, {_threads(n)}" for n in found.workers)):
        table.add_column(title, justify="right")
    for figure in found.figures:
        rates = [_three(figure.rates[count]) for count in found.workers]
        sizes = f"{figure.image_bytes / 1000:,.1f} kB", size_of(figure.split_bytes)
        table.add_row(Text(figure.name), *sizes, _fidelity(figure.decibels), *rates)
    console = Console(width=None if Console().is_terminal else 72 + 26 * len(found.workers))
    for line in (f"{found.processor}, {counted(found.cores, 'core')}; decoder: {found.decoder}", about):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(table)
    for line in sentences(found, wanted):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def sentences(found: Bench, wanted: float | None) -> list[str]:
    """What the table means and what to do, a line each."""
    said = [
        "Images/s: the slowest, the middle and the fastest round, with all files in memory, in one process.",
        "Fidelity: how far stored images lie from the originals; from 40 dB on it is hard to see; exact: not at all.",
    ]
    if _restless(found):
        said.append("The rounds differ much, so other programs were busy: run it again later, or with more --rounds.")
    if any(figure.command for figure in found.figures):
        said.append(
            "A format is built with: mae-pipe shard IMAGES OUT, and the options that are its name; IMAGES are what "
            "your shards were built of. What the options do: mae-pipe shard --help."
        )
    said += [f"Note: {line}." for line in found.notes]
    return [*said, _disk(found), "", *(_chosen(found, wanted) if wanted else _steps(found))]


def _restless(found: Bench) -> bool:
    """Whether most rounds were disturbed."""
    rounds = [rates for figure in found.figures for rates in figure.rates.values()]
    return 2 * sum(max(rates) > UNSTEADY * min(rates) for rates in rounds) > len(rounds)


def _disk(found: Bench) -> str:
    """How fast the disk of the given shards is."""

    cold = found.cold
    if cold.why:
        return f"Disk: not measured, as {cold.why}."
    return (
        f"Disk: what is not in memory yet comes at {size_of(int(cold.bytes))}/s, {cold.images:,.0f} images/s as stored "
        f"({counted(cold.read, 'image')} at random places, {_threads(cold.threads)})."
    )


def _steps(found: Bench) -> list[str]:
    """Which format is enough for which rate."""
    from mae_pipe.benching.choice import steps

    best = steps(found.figures)
    said = ["Which to choose depends on how many images/s your GPUs take. The smallest format that is fast enough:"]
    said += [_step(choice) for choice in best]
    if any(choice.figure.decibels != math.inf for choice in best):
        exact = [figure for figure in found.figures if figure.decibels == math.inf]
        said += ["Of those that change no pixel:"] * bool(exact) + [_step(choice) for choice in steps(exact)]
    return [
        *said,
        "What a run takes is images_per_second in RUN/metrics.jsonl, where wait_share is near 0; "
        "give it as --wanted, and one format is named.",
    ]


def _step(choice: Choice) -> str:
    return f"  up to {_count(choice.rate)} images/s: {_named(choice)}"


def _chosen(found: Bench, wanted: float) -> list[str]:
    """Which format makes so many images a second."""
    from mae_pipe.benching.choice import fastest, smallest

    choice = smallest(found.figures, wanted)
    if choice is None:
        best = fastest(found.figures)
        return [
            f"For {wanted:,.0f} images/s no format is fast enough on this machine with {_threads(found.workers[-1])}.",
            f"The fastest is {_named(best)}: {_count(best.rate)} images/s, {best.rate / wanted:.0%} of that.",
            *_build(best.figure),
            "More cores, smaller views (data.size) or more crops of an image (data.repeats) would bring it nearer.",
        ]
    said = [
        f"For {wanted:,.0f} images/s choose {_named(choice)}: of those that are fast enough it is the smallest, "
        f"and it makes {_count(choice.rate)}.",
        *_build(choice.figure),
        f"Train with --set data.workers={choice.workers}, divided among the processes where there are several.",
    ]
    if min(choice.figure.rates[choice.workers]) < wanted:
        said.append("It is close: its slowest round was below that.")
    return said + _reading(found, choice, wanted)


def _build(figure: Figure) -> list[str]:
    return [f"Build it with: {figure.command}" if figure.command else "That is what you have; nothing is to be built."]


def _reading(found: Bench, choice: Choice, wanted: float) -> list[str]:
    """Whether the disk keeps up."""
    from mae_pipe.machine import available_memory

    if found.cold.why:
        return []
    needed = wanted * choice.figure.image_bytes
    speed = f"{size_of(int(needed))}/s, and the disk gave {size_of(int(found.cold.bytes))}/s"
    if needed <= found.cold.bytes:
        return [f"It reads {speed}: enough."]
    if choice.figure.split_bytes < available_memory() / 2:
        return [f"It reads {speed}: too little in the first epoch, afterwards all of it is in memory."]
    return [f"It reads {speed}: too little, and all of it does not fit in memory; put it on a faster disk."]


def _named(choice: Choice) -> str:

    figure = choice.figure
    far = "" if figure.decibels in (None, math.inf) else f", {figure.decibels:.1f} dB"
    return f"{figure.name} ({size_of(figure.split_bytes)}{far}) with {_threads(choice.workers)}"


def _fidelity(decibels: float | None) -> str:
    if decibels is None:
        return "not compared"
    return "exact" if decibels == math.inf else f"{decibels:.1f} dB"


def _threads(count: int) -> str:
    return counted(count, "worker")


def _three(rates: list[float]) -> str:
    import statistics

    if len(rates) == 1:
        return _count(rates[0])
    return " / ".join(map(_count, (min(rates), statistics.median(rates), max(rates))))


def _count(rate: float) -> str:
    """Three figures of it, as the rest is noise."""
    digits = max(0, len(str(int(rate))) - 3)
    return f"{round(rate, -digits):,.0f}"


def as_json(found: Bench, asked: Mapping[str, Any], wanted: float | None) -> str:
    """Every figure; ``decibels`` are null where all is exact, and where nothing was compared."""
    from mae_pipe.benching.choice import smallest

    figures = []
    for figure in found.figures:
        exact = figure.decibels == math.inf
        figures.append(
            {
                **dataclasses.asdict(figure),
                "decibels": None if exact else figure.decibels,
                "exact": exact,
            }
        )
    choice = smallest(found.figures, wanted) if wanted else None
    named = None if choice is None else {"format": choice.figure.name, "workers": choice.workers}
    whole = {**asked, **dataclasses.asdict(found), "figures": figures, "choice": named}
    return json.dumps(whole, indent=1) + "\n"
