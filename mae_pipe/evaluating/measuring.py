"""``mae-pipe evaluate``: a downstream run measured on one set of labelled images, or on each of many."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mae_pipe import launch, runs, segmented
from mae_pipe.catalog import Catalog
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.order import Share
from mae_pipe.data.shelf import Shelf
from mae_pipe.data.stream import Stream
from mae_pipe.direct import READ_FROM, origin_of, shards_of, shards_of_run
from mae_pipe.errors import DataError, RunError
from mae_pipe.evaluating import drawing, writing
from mae_pipe.evaluating.evaluation import Evaluation, Evaluations
from mae_pipe.evaluating.judged import judge
from mae_pipe.evaluating.mapped import numbers_of, read_map
from mae_pipe.evaluating.scores import scores
from mae_pipe.evaluating.sets import sets_below
from mae_pipe.evaluating.trained import Trained, load
from mae_pipe.fitting import Plain, measured
from mae_pipe.labelled import labels_of
from mae_pipe.recipe import Changes
from mae_pipe.stopping import stopping_at_once
from mae_pipe.watchdog import naming_a_lost_rank

NAME = "evaluation.json"


@dataclass(frozen=True)
class Asked:
    """How a run is to be measured.

    Attributes:
        split: of the images; None: the run's, or the only one there is.
        class_map: a file for ``mapped.read_map``; None: names of folders are those of the run's classes.
        all_classes: an answer may be a class that the set has not.
    """

    split: str | None = None
    class_map: Path | None = None
    all_classes: bool = False


@naming_a_lost_rank()
@stopping_at_once()
def measure(
    run: Path,
    source: Path | str | None = None,
    *,
    catalog: Catalog,
    asked: Asked,
    size: int | None = None,
    centre_share: float | None = None,
    changes: Changes = (),
    each: bool = False,
    out: Path | None = None,
    predictions: Path | None = None,
    console: Console | None = None,
) -> Evaluations:
    """Measure the model of the downstream run ``run``, and write it down; the same on every rank.

    Every process of a job calls it; alone it needs no launcher. ``size``, ``centre_share`` and ``changes`` are those of
    ``trained.load``.

    Args:
        source: labelled shards or images, here or at a URL; default: those the run was evaluated on.
        each: every folder of images below ``source`` is a set of its own.
        out: the JSON file to write; default: ``evaluation.json`` in the run. A picture is beside it (.png), if the
            images have one class each, or maps.
        predictions: a CSV file to write, a line an image.
    """
    trained = load(run, catalog, size=size, centre_share=centre_share, changes=changes)
    if each and predictions is not None:
        raise DataError("predictions are of one set of images; leave out --predictions, or --each")
    places: dict[str, Path | str | None] = {"": source}
    if each:
        if source is None or isinstance(source, str):
            raise DataError("--each wants a folder here whose sub-folders are sets of images; give one behind RUN")
        places = {**sets_below(source)}
    here = launch.join()
    folder, out = runs.Run(run, rank=here.rank), out or run / NAME
    console = console or Console(stderr=True)
    model = Plain(trained.task)
    found: list[Evaluation] = []
    for name, place in places.items():
        if name and here.rank == 0:
            console.print(f"{name} ({len(found) + 1} of {len(places)})", markup=False, highlight=False)
        said = runs.about(run) if place is None else {}
        shards = shards_of_run(said, catalog, console) if place is None else shards_of(place, catalog, console)
        of = said.get(READ_FROM, said.get("shards", "")) if place is None else origin_of(place)
        picture = None if each else out.with_suffix(".png")
        found.append(_one(run, trained, model, shards, str(of), name, catalog, asked, folder, predictions, picture))
    whole = Evaluations(found)
    folder.on_rank_0(lambda: writing.save(whole, out))
    if not each and found[0].scores is not None:
        folder.on_rank_0(lambda: drawing.save(found[0], out.with_suffix(".png")))
    return whole


def _one(
    run: Path,
    trained: Trained,
    model: Plain,
    shards: Path,
    source: str,
    name: str,
    catalog: Catalog,
    asked: Asked,
    folder: runs.Run,
    predictions: Path | None,
    picture: Path | None,
) -> Evaluation:
    here = launch.join()
    manifest = Manifest.load(shards)
    head, data = trained.task.head, trained.recipe.data
    split = asked.split or _split(manifest, trained.recipe.eval_split, shards)
    manifest.split(split)
    share = Share(here.rank, here.world, data.micro_batch)
    stream = Stream(
        Shelf(shards, split, catalog), data, seed=trained.recipe.seed, share=share, training=False, labels=head.labels
    )
    about: dict[str, Any] = {"name": name, "run": str(run), "source": source, "split": split, "images": stream.images}
    about |= {"size": list(data.sides), "centre_share": data.centre_share, "step": trained.step, "main": head.main}
    given = manifest.classes_of(head.labels)
    try:
        if head.labels != "class":
            if predictions is not None or asked.class_map is not None or asked.all_classes:
                raise RunError(
                    f"the head {trained.recipe.head.name!r} does not say one class an image; leave out --predictions, "
                    "--class-map and --all-classes"
                )
            if given != trained.classes:
                raise DataError(f"{source} has other classes than {run}; give images with the same ones")
            metrics = measured(model, stream, head, trained.recipe.sliding)
            if head.labels == "map" and picture is not None:
                segmented.draw(model, stream, given, picture, active=here.rank == 0)
            return Evaluation(**about, classes=trained.classes, metrics=metrics)
        named = read_map(asked.class_map) if asked.class_map is not None else {}
        labels_of(stream.shelf, split, len(given))
        numbers = numbers_of(given, trained.classes, named, source)
        few = set(numbers) != set(range(len(trained.classes))) and not asked.all_classes
        allowed = torch.tensor(sorted(set(numbers)), device=model.device) if few else None
        rows = judge(model, stream, torch.tensor(numbers), allowed)
        wrong = ~(rows.probability >= 0)  # NaN
        if wrong.any():
            key = stream.index.key(int(rows.number[wrong.argmax()]))
            raise RunError(
                f"{run} gives no finite output for {int(wrong.sum()):,} images, first {key!r}; train it anew"
            )
        result = scores(rows, trained.classes)
        if predictions is not None:
            target = predictions
            folder.on_rank_0(lambda: writing.save_predictions(target, rows, stream.index.key, trained.classes))
        metrics = {name: float(values.mean()) for name, values in rows.own.items()}
        metrics |= {"top1": result.top1, "top5": result.top5} if allowed is not None else {}
        chosen = sorted(set(numbers)) if allowed is not None else None
        return Evaluation(**about, classes=trained.classes, metrics=metrics, scores=result, allowed=chosen)
    finally:
        stream.close()


def _split(manifest: Manifest, wanted: str, shards: Path) -> str:
    """The run's split, or the only one."""
    if wanted in manifest.splits:
        return wanted
    if len(manifest.splits) == 1:
        return next(iter(manifest.splits))
    raise DataError(f"{shards} has no split {wanted!r}, but {', '.join(manifest.splits)}; choose one with --split")
