"""A forecast as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mae_pipe.planning.fit import Setting
from mae_pipe.planning.forecast import Forecast
from mae_pipe.planning.machines import GB


def shown(forecast: Forecast) -> Group:
    """What fits first, then why, then time and disk."""
    parts: list[RenderableType] = [_facts(forecast), _memory(forecast), *_advice(forecast)]
    chosen = forecast.cheapest() or forecast.given
    if forecast.scaling(chosen):
        parts.append(_scaling(forecast, chosen))
    else:
        parts.append(Text("For time and scaling give --images-per-second or --peak-tflops, both of one GPU."))
    return Group(*parts)


def words(setting: Setting) -> str:
    """A setting in a few words."""
    said = f"ZeRO {setting.zero}"
    if setting.offload_parameters:
        return said + ", all on host"
    return said + (", state on host" if setting.offload_optimizer else "")


def _facts(forecast: Forecast) -> Table:
    plan, machines, weights, disk = forecast.plan, forecast.machines, forecast.weights, forecast.storage()
    kind = "processes" if machines.device == "cpu" else "GPUs"
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    rows = {
        "on": f"{machines.world} {kind} on {machines.nodes} node{'s' * (machines.nodes > 1)}",
        "batch": f"{plan.global_batch:,} = {machines.world} x {plan.micro_batch} x {plan.accumulation} "
        f"({kind} x micro-batch x accumulation)",
        "steps": f"{plan.steps:,}, {plan.steps_of(plan.warmup_epochs):,} of them warmup; {plan.epochs:g} epochs of "
        f"{plan.images:,} images",
        "learning rate": f"{plan.peak_lr:.4g}",
        "parameters": f"{weights.parameters:,} in {weights.blocks} blocks",
        "arithmetic": f"{forecast.costs.training / 1e9:,.1f} GFLOPs an image, "
        f"{forecast.costs.training * plan.global_batch * plan.steps / 1e18:,.4g} EFLOPs the run",
        "disk": f"{disk.run / GB:,.1f} GB of checkpoints and weights ({disk.checkpoint / GB:,.1f} GB a checkpoint), "
        f"{disk.shards / GB:,.1f} GB of shards",
    }
    for name, value in rows.items():
        table.add_row(f"[bold]{name}[/]", value)
    return table


def _memory(forecast: Forecast) -> Table:
    machines = forecast.machines
    where = "process" if machines.device == "cpu" else "GPU"
    limit = "" if machines.device == "cpu" else f", of {machines.memory:g} GB"
    table = Table(
        title=f"GB a {where}{limit}, at micro-batch {forecast.plan.micro_batch}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("setting")
    table.add_column("recomputed")
    for name in ("states", "gradients", "activations", "temporary", "all", "host a rank", "sent a step"):
        table.add_column(name, justify="right")
    table.add_column("fits")
    for setting, needed in forecast.settings():
        numbers = (needed.states, needed.gradients, needed.activations, needed.temporary, needed.device, needed.host)
        sent = forecast.traffic(setting).sent(machines.world)
        table.add_row(
            words(setting),
            "all blocks" if setting.checkpoint_blocks else "none",
            *(f"{number / GB:.2f}" for number in (*numbers, sent)),
            "[green]yes[/]" if forecast.fits(needed) else "[red]no[/]",
        )
    return table


def _advice(forecast: Forecast) -> Iterator[Text]:
    machines, needed, chosen = forecast.machines, forecast.memory(forecast.given), forecast.cheapest()
    takes = f"{needed.device / GB:.2f} GB a GPU"
    if machines.device == "cpu":
        all_of_them = forecast.process(forecast.given) * machines.gpus / GB
        takes = f"{all_of_them:.1f} GB in {machines.gpus} processes at its peak; {machines.host:g} GB are free"
    fits = "" if forecast.fits(needed) else ", which does not fit"
    yield Text(f"The recipe as it is ({words(forecast.given)}) takes {takes}{fits}.")
    if chosen is None:
        yield Text("No setting fits: more GPUs, GPUs with more memory, or a smaller model would.", style="red")
    else:
        yield Text("Cheapest that fits: --set " + " --set ".join(chosen.changes()), style="bold")


def _scaling(forecast: Forecast, setting: Setting) -> Table:
    hours, rate = forecast.hours(setting), forecast.rate(setting)
    took = "" if hours is None else f": the run takes {hours:,.1f} hours on {forecast.machines.world}"
    table = Table(
        title=f"At {rate:,.0f} images/s of one GPU by itself{took}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    names = ("GPUs", "micro-batch", "accumulation", "compute s", "collectives s", "images/s", "efficiency", "hours")
    for name in names:
        table.add_column(name, justify="right")
    images = forecast.plan.steps * forecast.plan.global_batch
    for one in forecast.scaling(setting):
        table.add_row(
            f"{one.world:,}",
            str(one.micro_batch),
            str(one.accumulation),
            f"{one.compute:.3f}",
            f"{one.talk:.3f}",
            f"{one.images_per_second:,.0f}",
            f"{one.efficiency:.0%}",
            f"{images / one.images_per_second / 3600:,.1f}",
        )
    return table
