"""Shards -> batches: the one stream that every task reads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.data import ahead, processes, region
from mae_pipe.data.arrange import Begun, advice, arranged, in_words
from mae_pipe.data.batch import Batch
from mae_pipe.data.fill import BOXES, Filler, Wanted
from mae_pipe.data.form import Form
from mae_pipe.data.index import SampleIndex
from mae_pipe.data.layout import Numbers
from mae_pipe.data.manifest import Labels
from mae_pipe.data.order import Share
from mae_pipe.data.scout import check_room, scouted
from mae_pipe.data.shelf import Shelf
from mae_pipe.data.windows import Windows
from mae_pipe.errors import DataError, RecipeError
from mae_pipe.views import PLAIN, Crop
from mae_pipe.wording import counted

Plan = Iterator[tuple[Numbers, Numbers]]  # of each batch: rows of the index, positions


class Stream:
    """The batches of one split for one rank, as a function of where to start.

    Attributes:
        images: in one epoch of the whole job.
        instead: what makes the batches of a plan, where images need not be decoded (``features/recall.py``).

    Args:
        shelf: the images.
        data: crop, flip, jitter and size; ``data.workers`` threads or processes decode.
        seed: of the run.
        share: which part of a global micro-batch is this rank's.
        training: augmented, in a random order; else the centre view.
        rows: only these index rows, as few-label training wants; default all.
        labels: which of a ``Batch``'s labels are wanted.
        views: of every image, each cropped, mirrored and jittered by itself, from one decode; a number stands for so
            many plain ones. Their colours are changed where the batch is used (``appearance.py``).
        begun: the order of the run that goes on (``arrange.py``).
    """

    def __init__(
        self,
        shelf: Shelf,
        data: recipe.Data,
        *,
        seed: int,
        share: Share,
        training: bool = True,
        rows: Numbers | None = None,
        labels: Labels = "class",
        views: int | tuple[Crop, ...] = 1,
        begun: Begun | None = None,
    ) -> None:
        self.shelf, self.data, self.share, self.labels = shelf, data, share, labels
        self.rows = rows
        self.instead: Callable[[Plan], Iterator[Batch]] | None = None
        self.images = len(shelf.index) if rows is None else len(rows)
        if not self.images:
            raise DataError(f"{shelf.folder} has no images to read; look at its manifest.json for what was refused")
        shelf.check_channels(data.channels)
        shelf.check_labels(labels)
        several = PLAIN * views if isinstance(views, int) else views
        if training and data.crop not in BOXES and any(view.scale for view in several):
            raise RecipeError(
                f'data.crop is {data.crop!r}, and the views are of parts of an image; set data.crop to "random"'
            )
        self._wanted = Wanted(shelf.folder, shelf.name, shelf.plugins, data, seed, training, labels, several)
        self._filler, self._form = Filler(shelf, self._wanted), Form(shelf, self._wanted)
        self.order = arranged(self._blocks(), data, seed, far=shelf.depot.far, begun=begun)
        if isinstance(self.order, Windows) and self.order.lanes > 1 and not data.global_batch % share.advance:
            self.share = replace(share, together=data.global_batch // share.advance)
        check_room(shelf, self.order if training else None)

    @property
    def about(self) -> str:
        """What is read and how, and what would be better, for people."""
        count, kind = self.data.workers, self.data.worker_kind
        workers = counted(count, kind) if count else "no threads of their own"
        held = (processes.SLOTS if kind == "process" else ahead.AHEAD + 1) if count else 1
        batches = f"up to {held * self._form.layout(self.share.micro_batch).bytes / 1e6:,.1f} MB of batches under way"
        order = f"{in_words(self.order)}, from {self.shelf.depot.place}" if self.shelf.depot.far else ""
        found = (f"data: {counted(self.images, 'image')} of {self.shelf.name}", order, workers, batches)
        said = f"{', '.join(filter(None, found))}, decoder: {region.decoder()}"
        labels = self.index.label if self.rows is None else self.index.label[self.rows]
        return "\n".join(filter(None, (said, advice(self.order, labels))))

    @property
    def index(self) -> SampleIndex:
        return self.shelf.index

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Endless micro-batches, as if the job had consumed ``start`` images.

        Where ``data.repeats`` is k, k neighbours are crops of one image, which is decoded once.
        """

        return self.read(lambda: self.plan(start))

    def plan(self, start: int = 0) -> Plan:
        """The rows and positions of the endless batches."""
        at = start
        while True:
            positions = self.share.positions(at)
            yield self._rows(self.order.at(positions // self.data.repeats)), positions
            at += self.share.advance

    def once(self) -> Iterator[Batch]:
        """Every image exactly once over all ranks, in the order of the shards.

        All ranks give the same number of batches; places beyond the end have number -1.
        """

        def plan() -> Iterator[tuple[Numbers, Numbers]]:
            each = replace(self.share, together=1)
            for at in range(0, self.images, each.advance):
                positions = each.positions(at)
                inside = positions < self.images
                yield np.where(inside, self._rows(np.where(inside, positions, 0)), -1), positions

        return self.read(plan)

    def read(self, plan: Callable[[], Plan]) -> Iterator[Batch]:
        """The batches of a plan; where shards have to be fetched, it is walked a second time, ahead of them."""
        if self.instead is not None:
            return self.instead(plan())
        end = threading.Event()
        if self.data.worker_kind == "process" and self.data.workers:
            count = self.share.micro_batch
            batches = processes.run(plan(), self._wanted, self._form, self.data.workers, count=count)
        else:
            batches = ahead.run(plan(), self._filler, self._form, self.data.workers, end)
        return scouted(batches, self.shelf, plan(), self.order, end) if self.shelf.depot.far else batches

    def _blocks(self) -> Numbers:
        """Images of each shard."""
        shards = self.index.shard if self.rows is None else self.index.shard[self.rows]
        if self.rows is None:
            return np.array([shard.images for shard in self.shelf.split.shards], np.int64)
        return np.bincount(shards, minlength=len(self.shelf.split.shards))

    def _rows(self, numbers: Numbers) -> Numbers:
        return numbers if self.rows is None else self.rows[numbers]

    def close(self) -> None:
        """Let go of every shard file."""
        self.shelf.close()


def open_stream(
    shards: Path,
    split: str,
    data: recipe.Data,
    *,
    seed: int,
    share: Share,
    catalog: Catalog,
    training: bool = True,
    rows: Numbers | None = None,
    labels: Labels = "class",
    views: int | tuple[Crop, ...] = 1,
    begun: Begun | None = None,
) -> Stream:
    """The stream of one split of a folder of shards (``Stream`` explains the rest)."""
    shelf = Shelf(shards, split, catalog)
    chosen = {"training": training, "rows": rows, "labels": labels, "views": views, "begun": begun}
    return Stream(shelf, data, seed=seed, share=share, **chosen)  # type: ignore[arg-type]
