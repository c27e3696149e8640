"""``mae-pipe demo``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="A folder of your own images.  [default: 5,000 digits]")
@click.option(
    "--out",
    default="demo-out",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder, made or gone on with.",
)
@click.option(
    "--minutes",
    default=3.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Of pretraining on two CPU cores, roughly: the number of epochs follows from it.",
)
@click.option("--nproc", default=1, show_default=True, type=click.IntRange(min=1), help="Processes for pretraining.")
@click.pass_context
def demo(ctx: click.Context, data: Path | None, out: Path, minutes: float, nproc: int) -> None:
    """Run the whole path on real digits, or on your own images.

    Builds shards in both formats, pretrains, probes, finetunes and draws; ends with a table and one report.html. Images
    in class folders are probed and finetuned on, others are pretrained on only. The same command goes on where it was
    stopped. Ends with 1 if pretraining did not pay on the digits, which would be a bug.
    """
    from mae_pipe.demo import demo as run_demo

    paid = run_demo(out, data=data, minutes=minutes, nproc=nproc)
    if not paid and data is None:
        ctx.exit(1)
