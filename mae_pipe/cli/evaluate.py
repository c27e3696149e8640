"""``mae-pipe evaluate``."""

from __future__ import annotations

from pathlib import Path

import click

from mae_pipe.cli.launching import start
from mae_pipe.cli.places import PLACE
from mae_pipe.spawning import Job

FILE = click.Path(path_type=Path)


@click.command()
@click.argument("run", type=FILE)
@click.argument("source", metavar="[SRC]", required=False, type=PLACE)
@click.option("--split", metavar="NAME", help="Of the images.  [default: the run's, or the only one]")
@click.option("--each", is_flag=True, help="Every folder of images below SRC is a set of its own, as of ImageNet-C.")
@click.option(
    "--class-map", type=FILE, metavar="FILE", help="Which class of RUN a folder of SRC is: .json, .csv, .txt."
)
@click.option("--all-classes", is_flag=True, help="Answers may be classes that SRC has not.")
@click.option("--size", type=click.IntRange(min=1), metavar="PX", help="Show images in another size than RUN's.")
@click.option(
    "--crop-share",
    type=click.FloatRange(0, 1, min_open=True),
    help="Side of what is shown in the image's short side.  [default: the run's; 1 where --size is above 224]",
)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a key of data: data.workers=2.")
@click.option(
    "--out", type=FILE, metavar="FILE", help="JSON to write, a PNG beside it.  [default: RUN/evaluation.json]"
)
@click.option("--predictions", type=FILE, metavar="FILE", help="CSV to write: key, label, predicted, probability.")
@click.option("--nproc", type=click.IntRange(min=1), default=1, help="Processes to start on this machine.")
@click.option("--plugin", "plugins", multiple=True, type=FILE, metavar="FILE", help="A Python file with plugins.")
def evaluate(
    run: Path,
    source: Path | str | None,
    split: str | None,
    each: bool,
    class_map: Path | None,
    all_classes: bool,
    size: int | None,
    crop_share: float | None,
    changes: tuple[str, ...],
    out: Path | None,
    predictions: Path | None,
    nproc: int,
    plugins: tuple[Path, ...],
) -> None:
    """Measure the finetuned or probed RUN on labelled images.

    SRC is shards or images, here or at a URL; by default those that RUN was evaluated on. Accuracies, confusion and
    calibration are exact counts over every image, the same on any number of processes. Where the classes of SRC are
    only some of RUN's, answers are restricted to them (docs/evaluation.md).
    """
    start(Job(nproc))

    from rich.console import Console

    from mae_pipe import evaluate as measure
    from mae_pipe import launch
    from mae_pipe.cli.measured import show

    found = measure(
        run,
        source,
        split=split,
        each=each,
        class_map=class_map,
        all_classes=all_classes,
        size=size,
        crop_share=crop_share,
        changes=changes,
        out=out,
        predictions=predictions,
        plugins=plugins,
        console=Console(stderr=True),
    )
    if launch.place().rank == 0:
        show(found)
        click.echo(f"everything: {out or run / 'evaluation.json'}", err=True)
