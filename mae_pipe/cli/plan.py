"""``mae-pipe plan``: what a recipe costs, before it is run."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("recipe")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a recipe key: mask.ratio=0.6.")
@click.option("--images", type=click.IntRange(min=1), help="Images in an epoch; default: ImageNet's 1,281,167.")
@click.option("--plugin", "plugins", multiple=True, type=click.Path(path_type=Path), help="A Python file with plugins.")
def plan(recipe: str, changes: tuple[str, ...], images: int | None, plugins: tuple[Path, ...]) -> None:
    """Say what RECIPE, a built-in pretraining recipe or a TOML file, costs.

    Parameters, tokens, FLOPs an image (counted by PyTorch on shapes alone), steps and the learning rate.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from mae_pipe import recipe as recipes
    from mae_pipe.catalog import Catalog
    from mae_pipe.costs import costs
    from mae_pipe.optim import Plan

    chosen = recipes.load(recipe, changes, task="pretrain")
    assert isinstance(chosen, recipes.Pretrain)
    found = costs(chosen, Catalog(plugins))
    steps = Plan.of(chosen, images or 1_281_167, 1)
    total = found.encoder_parameters + found.decoder_parameters
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    rows = {
        "parameters": f"{total:,}: encoder {found.encoder_parameters:,}, decoder {found.decoder_parameters:,}",
        "patches": f"{found.patches}, {found.visible} of them visible",
        "tokens": f"{found.encoder_tokens} in the encoder, {found.decoder_tokens} in the decoder",
        "forward": f"{found.forward / 1e9:.2f} GFLOPs an image",
        "training": f"{found.training / 1e9:.2f} GFLOPs an image",
        "a step": f"{found.training * steps.global_batch / 1e12:,.2f} TFLOPs for {steps.global_batch:,} images",
        "the run": f"{steps.steps:,} steps, {steps.epochs:g} epochs of {steps.images:,} images, "
        f"{found.training * steps.global_batch * steps.steps / 1e18:,.4g} EFLOPs",
        "learning rate": f"{steps.peak_lr:.4g} at its peak, after {steps.warmup_epochs:g} epochs",
    }
    for name, value in rows.items():
        table.add_row(f"[bold]{name}[/]", value)
    Console(width=None if Console().is_terminal else 120).print(table)
