"""Labelled shards -> what a head trains on, and what it is measured on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mae_pipe.catalog import Catalog
from mae_pipe.data.arrange import Begun
from mae_pipe.data.manifest import Labels, Manifest
from mae_pipe.data.order import Share
from mae_pipe.data.shelf import Shelf
from mae_pipe.data.stream import Stream
from mae_pipe.errors import DataError, RecipeError
from mae_pipe.recipe import Downstream
from mae_pipe.seeding import key, permutation


def open_splits(
    shards: Path,
    recipe: Downstream,
    share: Share,
    catalog: Catalog,
    labels: Labels = "class",
    begun: Begun | None = None,
) -> tuple[list[str], Stream, Stream]:
    """The names of the classes, what is trained on, and what is measured. ``begun``: see ``Stream``."""
    if labels != "class":
        return _other_labels(shards, recipe, share, catalog, labels, begun)
    classes = _check(shards, recipe).classes
    shelf = Shelf(shards, recipe.train_split, catalog)
    numbers = labels_of(shelf, recipe.train_split, len(classes))
    rows = few(numbers, recipe, classes) if recipe.labels_per_class else None
    stream = Stream(shelf, recipe.data, seed=recipe.seed, share=share, rows=rows, begun=begun)
    shelf = Shelf(shards, recipe.eval_split, catalog)
    labels_of(shelf, recipe.eval_split, len(classes))
    return classes, stream, Stream(shelf, recipe.data, seed=recipe.seed, share=share, training=False)


def _other_labels(
    shards: Path, recipe: Downstream, share: Share, catalog: Catalog, labels: Labels, begun: Begun | None
) -> tuple[list[str], Stream, Stream]:
    """The same for several classes an image, or a map of them."""
    if recipe.labels_per_class:
        raise RecipeError(
            f"labels_per_class {recipe.labels_per_class} is for one class an image, which the head "
            f"{recipe.head.name!r} does not learn from; leave it out"
        )
    manifest = Manifest.load(shards)
    streams = []
    for use, split, training in (("train", recipe.train_split, True), ("eval", recipe.eval_split, False)):
        if split not in manifest.splits:
            raise DataError(
                f"the shards {shards} have no split {split!r}, they have {', '.join(manifest.splits)}; choose another "
                f"with --set {use}_split=NAME, or hold images out with: mae-pipe shard ... --split val=0.1"
            )
        shelf = Shelf(shards, split, catalog)
        how: dict[str, Any] = {"training": training, "labels": labels, "begun": begun}
        streams.append(Stream(shelf, recipe.data, seed=recipe.seed, share=share, **how))
    return manifest.classes_of(labels), streams[0], streams[1]


def few(labels: NDArray[np.int32], recipe: Downstream, classes: list[str]) -> NDArray[np.int64]:
    """The rows of the first ``labels_per_class`` images of every class, in an order that only the seed decides."""
    wanted = recipe.labels_per_class or len(labels)
    order = permutation(key(recipe.seed, "labels"), len(labels))
    chosen = []
    for label, name in enumerate(classes):
        rows = order[labels[order] == label][:wanted]
        if len(rows) < wanted:
            raise DataError(
                f"the class {name!r} has {len(rows)} images in {recipe.train_split!r}, fewer than labels_per_class "
                f"{wanted}; set labels_per_class={max(1, len(rows))} or less"
            )
        chosen.append(rows)
    return np.sort(np.concatenate(chosen))


def _check(shards: Path, recipe: Downstream) -> Manifest:
    """The manifest of shards that have both splits and labels."""
    manifest = Manifest.load(shards)
    for use, name in (("train_split", recipe.train_split), ("eval_split", recipe.eval_split)):
        if name not in manifest.splits:
            raise DataError(
                f"the shards {shards} have no split {name!r}, they have {', '.join(manifest.splits)}; choose another "
                f"with --set {use}=NAME, or hold images out with: mae-pipe shard ... --split val=0.1"
            )
        if not manifest.splits[name].labelled:
            raise DataError(
                f"the split {name!r} of {shards} has no labels; shard a folder with one sub-folder a class, "
                f"and give it with --shards"
            )
    return manifest


def labels_of(shelf: Shelf, split: str, classes: int) -> NDArray[np.int32]:
    """[n] labels of a split, every one a class."""
    labels = shelf.index.label
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise DataError(
            f"{len(wrong)} images of the split {split!r} have no label of {classes} classes, first "
            f"{shelf.index.key(int(wrong[0]))!r}; build the shards again from one sub-folder a class"
        )
    return labels
