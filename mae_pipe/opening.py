"""What a downstream run begins with: a pretrained encoder, a new head, labelled splits, a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from torch import Tensor

from mae_pipe import launch, runs
from mae_pipe.catalog import Catalog
from mae_pipe.classification import UNTRAINED, Classification, read_weights
from mae_pipe.data.order import Share
from mae_pipe.data.stream import Stream
from mae_pipe.direct import shards_of, shards_of_run
from mae_pipe.errors import RecipeError, RunError
from mae_pipe.features.folder import Features
from mae_pipe.features.recall import recall
from mae_pipe.labelled import open_splits
from mae_pipe.launch import Place
from mae_pipe.optim import Plan
from mae_pipe.positions import own_biases
from mae_pipe.recipe import INHERITED, Data, Downstream, Pretrain
from mae_pipe.runs import Run, about_data, about_plugins


@dataclass(frozen=True)
class Opened:
    """What a downstream run begins with.

    Attributes:
        run: the pretraining run; from scratch also the name of a recipe.
        folder: the run's own, which is not made yet.
        about: what makes it what it is, besides its recipe.
    """

    run: Path
    pretrained: Pretrain
    recipe: Downstream
    here: Place
    folder: Run
    classes: list[str]
    stream: Stream
    held_out: Stream
    task: Classification
    about: dict[str, Any]
    console: Console | None

    def recall(self, views: int) -> tuple[Features, Features]:
        """Have the head learn from features of both splits, instead of images.

        They are kept in the pretraining run; from scratch, where a recipe has no folder, in this one.
        """
        fingerprint = self.about["encoder_fingerprint"]
        return recall(
            self.task,
            self.recipe,
            self.pretrained,
            self.stream,
            self.held_out,
            run=self.run if self.run.is_dir() else self.folder.folder,
            fingerprint=fingerprint,
            views=views,
            say=self.say,
        )

    def say(self, text: str) -> None:
        """A line for people, of rank 0."""
        if self.here.rank == 0:
            (self.console or Console(stderr=True)).print(text, markup=False, highlight=False, soft_wrap=True)


def opened(
    run: Path,
    recipe: Downstream,
    *,
    catalog: Catalog,
    shards: Path | str | None,
    out: Path | None,
    how: str = "",
    from_scratch: bool,
    console: Console | None,
) -> Opened:
    """The encoder of ``run`` with a new head, and both splits.

    Nothing is written yet: what does not fit, such as a plugin that is not there, leaves no folder behind.
    """
    pretrained = runs.pretraining_of(run, from_scratch=from_scratch)
    if not run.is_dir() and not (shards and out):
        raise RunError(f"{run} is a recipe, which has no shards and no folder; give --shards and --out")
    recipe = inherit(recipe, pretrained)
    shards = shards_of(shards, catalog, console) if shards else shards_of_run(runs.about(run), catalog, console)
    out = out or folder_of(run, recipe, from_scratch=from_scratch, how=how)
    weights, fingerprint = (None, UNTRAINED) if from_scratch else read_weights(run)
    if recipe.bias_per_block:
        pretrained, weights = _own_biases(pretrained, weights)

    here = launch.join()
    share = Share(here.rank, here.world, Plan.of(recipe, 1, here.world).micro_batch)
    wanted = catalog.find("head", recipe.head.name).labels
    classes, stream, held_out = open_splits(shards, recipe, share, catalog, wanted, begun=runs.begun_order(out))
    task = Classification.from_recipe(recipe, pretrained, weights, catalog, classes=len(classes))
    about = {
        "pretrained": str(run.resolve()) if run.is_dir() else str(run),
        "from_scratch": from_scratch,
        "encoder_fingerprint": fingerprint,
        "main": task.head.main,
        **about_data(shards, recipe.train_split, stream, here.world),
        **about_plugins(catalog, shards, head=recipe.head.name),
        **({"left_out": task.left_out} if task.left_out else {}),
    }
    folder = Run(out, rank=here.rank)
    return Opened(run, pretrained, recipe, here, folder, classes, stream, held_out, task, about, console)


def _own_biases(pretrained: Pretrain, weights: dict[str, Tensor] | None) -> tuple[Pretrain, dict[str, Tensor] | None]:
    """The encoder with a bias of every block's own, each a copy of what all blocks shared."""
    shape = pretrained.encoder
    if not shape.positions.startswith("relative"):
        raise RecipeError(
            f"bias_per_block is for relative positions, and the encoder's are {shape.positions!r}; set it to false"
        )
    own = pretrained.model_copy(update={"encoder": shape.model_copy(update={"positions": "relative_per_block"})})
    return own, None if weights is None else own_biases(weights, shape.depth)


def inherit(recipe: Downstream, pretrained: Pretrain) -> Downstream:
    """The recipe with the pretrained run's image size, statistics and centre crop, where it does not give its own."""
    missing = {n: getattr(pretrained.data, n) for n in INHERITED if n not in recipe.data.model_fields_set}
    try:
        data = Data.model_validate({**recipe.data.model_dump(), **missing})
    except ValidationError as error:
        what = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise RunError(
            f"the recipe's data does not go with the pretrained run's ({what}); set both, or neither"
        ) from error
    fits = [max(1, side // patch) * patch for side, patch in zip(data.sides, pretrained.encoder.sides, strict=True)]
    if (*fits,) != data.sides:
        raise RunError(
            f"data.size {data.size} is no multiple of the pretrained encoder's patch {pretrained.encoder.patch}; "
            f"set data.size={fits[0] if fits[0] == fits[1] else fits}"
        )
    return recipe.model_copy(update={"data": data})


def folder_of(run: Path, recipe: Downstream, *, from_scratch: bool, how: str = "") -> Path:
    """RUN/probe, RUN/finetune-scratch, RUN/probe-knn, RUN/probe-sweep, ...: runs that are compared do not collide."""
    way = f"-{how}" if how else ""
    head = "" if recipe.head.name == "linear" else f"-{recipe.head.name}"
    labels = f"-{recipe.labels_per_class}" if recipe.labels_per_class else ""
    blocks = "" if recipe.tune_blocks is None else f"-blocks{recipe.tune_blocks:g}"
    return run / f"{recipe.task}{head}{way}{blocks}{'-scratch' if from_scratch else ''}{labels}"
