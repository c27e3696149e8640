"""``mae-pipe plan``: what a recipe costs, before it is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mae_pipe.catalog import Catalog
    from mae_pipe.recipe import Pretrain

IMAGENET = 1_281_167
Above = click.FloatRange(min=0, min_open=True)


@click.command()
@click.argument("recipe")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a recipe key: mask.ratio=0.6.")
@click.option("--images", type=click.IntRange(min=1), help="Images in an epoch; default: ImageNet's 1,281,167.")
@click.option("--gpus", type=click.IntRange(min=1), help="GPUs of a node: says memory, traffic, time and disk too.")
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Nodes.")
@click.option("--gpu-memory", type=Above, default=80.0, show_default=True, help="GB of a GPU; nine tenths are used.")
@click.option("--host-memory", type=Above, help="GB of a node's own memory.  [default: 1000; of this machine on cpu]")
@click.option("--images-per-second", type=Above, help="Of one GPU by itself, as measured.")
@click.option("--peak-tflops", type=Above, help="Of one GPU in the recipe's precision, where its speed is not known.")
@click.option("--utilization", type=click.FloatRange(0, 1, min_open=True), default=0.4, show_default=True,
              help="Share of --peak-tflops that a run reaches.")  # fmt: skip
@click.option("--link", type=Above, default=300.0, show_default=True, help="GB/s of a GPU to others of its node.")
@click.option("--network", type=Above, default=50.0, show_default=True, help="GB/s of a node to the others.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True,
              help="cpu: --gpus processes on this machine, whose memory is the host's.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="For machines: bytes, seconds and numbers.")
@click.option("--plugin", "plugins", multiple=True, type=click.Path(path_type=Path), help="A Python file with plugins.")
def plan(recipe: str, changes: tuple[str, ...], images: int | None, plugins: tuple[Path, ...], **machines: Any) -> None:
    """Say what RECIPE, a built-in pretraining recipe or a TOML file, costs.

    Parameters, tokens, FLOPs an image (counted by PyTorch on shapes alone), steps and the learning rate. With --gpus
    also the memory of every ZeRO stage, the cheapest setting that fits, what ranks send each other, time on 8 to 1,024
    GPUs, and disk; docs/zero-and-vit-h.md says how these are reckoned.
    """
    from mae_pipe import recipe as recipes
    from mae_pipe.catalog import Catalog

    chosen = recipes.load(recipe, changes, task="pretrain")
    assert isinstance(chosen, recipes.Pretrain)
    catalog = Catalog(plugins)
    if machines["gpus"] is None and not machines["as_json"]:
        _short(chosen, catalog, images or IMAGENET)
    else:
        _on_machines(chosen, catalog, images or IMAGENET, **machines)


def _short(chosen: Pretrain, catalog: Catalog, images: int) -> None:
    from rich import box
    from rich.table import Table

    from mae_pipe.costs import costs
    from mae_pipe.optim import Plan

    found = costs(chosen, catalog)
    steps = Plan.of(chosen, images, 1)
    total = found.encoder_parameters + found.decoder_parameters
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    masked = found.decoder_tokens > 0
    beside = "decoder" if masked else "beside it"
    rows = {
        "parameters": f"{total:,}: encoder {found.encoder_parameters:,}, {beside} {found.decoder_parameters:,}",
        "patches": f"{found.patches}, {found.visible} of them visible" if masked else f"{found.patches}",
        "tokens": f"{found.encoder_tokens} in the encoder"
        + (f", {found.decoder_tokens} in the decoder" if masked else ""),
        "forward": f"{found.forward / 1e9:.2f} GFLOPs an image",
        "training": f"{found.training / 1e9:.2f} GFLOPs an image",
        "a step": f"{found.training * steps.global_batch / 1e12:,.2f} TFLOPs for {steps.global_batch:,} images",
        "the run": f"{steps.steps:,} steps, {steps.epochs:g} epochs of {steps.images:,} images, "
        f"{found.training * steps.global_batch * steps.steps / 1e18:,.4g} EFLOPs",
        "learning rate": f"{steps.peak_lr:.4g} at its peak, after {steps.warmup_epochs:g} epochs",
    }
    for name, value in rows.items():
        table.add_row(f"[bold]{name}[/]", value)
    _print(table)


def _on_machines(
    chosen: Pretrain,
    catalog: Catalog,
    images: int,
    *,
    gpus: int | None,
    nodes: int,
    gpu_memory: float,
    host_memory: float | None,
    images_per_second: float | None,
    peak_tflops: float | None,
    utilization: float,
    link: float,
    network: float,
    device: str,
    as_json: bool,
) -> None:
    from mae_pipe.planning.forecast import Forecast
    from mae_pipe.planning.machines import Machines, here
    from mae_pipe.planning.show import shown
    from mae_pipe.planning.traffic import Links

    count = gpus or 1
    machines = here(count) if device == "cpu" else Machines(gpus=count, nodes=nodes, memory=gpu_memory)
    machines = machines.but(
        host=host_memory,
        rate=images_per_second,
        tflops=peak_tflops,
        utilization=utilization,
        links=Links(count, link, network),
    )
    forecast = Forecast(chosen, catalog, machines, images=images)
    if as_json:
        click.echo(json.dumps(forecast.as_dict(), indent=1))
    else:
        _print(shown(forecast))


def _print(what: Any) -> None:
    from rich.console import Console

    Console(width=None if Console().is_terminal else 120).print(what)
