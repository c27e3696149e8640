"""Readings of held-out images: the method's loss, and what their features say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mae_pipe.catalog import Catalog
from mae_pipe.data.batch import Batch
from mae_pipe.data.device import placed
from mae_pipe.data.layout import Numbers
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.order import Share
from mae_pipe.data.shelf import Shelf
from mae_pipe.data.stream import Stream
from mae_pipe.labelled import labels_of
from mae_pipe.monitoring import measures
from mae_pipe.recipe import Pretrain

Opened = Callable[[Pretrain, str, Numbers], Stream]  # recipe, split, rows of it -> the views that the method wants


class Model(Protocol):
    """What is read: the engine, or anything that is called as it is."""

    device: torch.device
    rank: int
    world: int

    def __call__(self, batch: Batch, mode: str = "loss") -> Tensor: ...

    def train(self, mode: bool = True) -> object: ...


class HeldOut:
    """The same images at every reading, with the same crops and masks.

    The loss is of whole global batches, as many as hold ``monitor.images``: so it is the mean of the same crops on any
    number of ranks, of micro-batches as in training. Features are of every image once.

    Args:
        views: of the images, as the method wants them.
        bank: centre views of labelled images that vote; None: no vote.
        several: whether the method compares two views of an image.
    """

    def __init__(self, recipe: Pretrain, views: Stream, bank: Stream | None, *, several: bool) -> None:
        assert views.rows is not None
        self.views, self.several, self.images = views, several, len(views.rows)
        share, data = views.share, views.data
        self._centre = Stream(views.shelf, data, seed=recipe.seed, share=share, training=False, rows=views.rows)
        self._bank = bank
        self._batches = math.ceil(self.images / data.global_batch) * (data.global_batch // share.advance)

    @classmethod
    def of(
        cls, recipe: Pretrain, shards: Path, split: str, *, share: Share, several: bool, catalog: Catalog, views: Opened
    ) -> HeldOut | None:
        """Of ``monitor.split``; None where the shards do not have it.

        Args:
            split: that is trained on, of whose images ``monitor.knn`` vote.

        Raises:
            DataError: they are to vote, and there are images without a label.
        """
        chosen, manifest = recipe.monitor, Manifest.load(shards)
        if chosen.split not in manifest.splits or not manifest.splits[chosen.split].images:
            return None
        calm = {"repeats": 1, "order": "full", "lanes": 1, "worker_kind": "thread"}  # processes take seconds to start
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update=calm)})
        shelf = Shelf(shards, chosen.split, catalog)
        held, bank = views(recipe, chosen.split, shelf.spread(chosen.images)), None
        shelf.close()
        if chosen.knn:
            known = Shelf(shards, split, catalog)
            for part in (known, held.shelf):
                labels_of(part, part.name, len(manifest.classes))
            rows = known.spread(chosen.knn)
            bank = Stream(known, recipe.data, seed=recipe.seed, share=share, training=False, rows=rows)
        return cls(recipe, held, bank, several=several)

    @torch.no_grad()
    def read(self, model: Model) -> dict[str, float]:
        """The numbers of a reading, on rank 0; nothing on others. All ranks call it; the model trains on after."""
        model.train(False)
        try:
            loss, pairs = self._passed(model)
            features = self._features(model, self._centre)
            bank = None if self._bank is None else self._features(model, self._bank)
        finally:
            model.train()
        if model.rank:
            return {}
        found = {"held_out_loss": loss, "rankme": measures.rankme(features), "cosine": measures.mean_cosine(features)}
        if self.several:
            ones, others = pairs[:, 0], pairs[:, 1]
            found["alignment"] = measures.alignment(ones, others)
            found["uniformity"] = (measures.uniformity(ones) + measures.uniformity(others)) / 2
        if bank is not None:
            found["knn"] = measures.vote(bank, _labels(self._bank), features, _labels(self._centre))
        return found

    def _passed(self, model: Model) -> tuple[float, measures.Features]:
        """The mean loss, and [n, 2, D] features of the first two views of every image."""
        total = torch.zeros((), dtype=torch.float64, device=model.device)
        pairs: list[Tensor] = []
        places: list[Tensor] = []
        for at, batch in enumerate(_on(model, self.views.batches(), self._batches)):
            total += model(batch)
            if self.several and at * self.views.share.advance < self.images:
                pairs.append(model(batch, mode="pairs"))
                places.append(batch.positions)
        if model.world > 1:
            dist.all_reduce(total)
        return float(total) / (self._batches * model.world), _gathered(pairs, places, self.images, model.world)

    def _features(self, model: Model, stream: Stream) -> measures.Features:
        """[n, D] of all images of ``stream``, in its order."""
        made = [(model(batch, mode="features"), batch.positions) for batch in _on(model, stream.once())]
        return _gathered([one for one, _ in made], [place for _, place in made], stream.images, model.world)

    def close(self) -> None:
        """Let go of the shards."""
        for stream in (self.views, self._bank):
            if stream is not None:
                stream.close()


def _on(model: Model, batches: Iterator[Batch], count: int | None = None) -> Iterator[Batch]:
    """The first ``count`` batches on the model's device."""
    with closing(batches), closing(placed(batches, model.device)) as pairs:  # type: ignore[type-var]
        for one in islice(pairs, count):
            yield one.there


def _gathered(parts: list[Tensor], places: list[Tensor], count: int, world: int) -> measures.Features:
    """[n, ...] of all ranks, by place below ``count``. All ranks have equally many, as streams give them padding."""
    if not parts:
        return np.zeros((0, 2, 0))
    found, at = torch.cat(parts).contiguous(), torch.cat(places)
    if world > 1:
        every = [[torch.empty_like(part) for _ in range(world)] for part in (found, at)]
        dist.all_gather(every[0], found)
        dist.all_gather(every[1], at)
        found, at = torch.cat(every[0]), torch.cat(every[1])
    order = at.argsort(stable=True)
    return found[order][at[order] < count].double().cpu().numpy()


def _labels(stream: Stream | None) -> measures.Labels:
    assert stream is not None
    return stream.index.label[stream.rows].astype(np.int64)
