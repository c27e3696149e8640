"""A batch is filled: read, decoded, cropped, resized, and its labels with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mae_pipe import recipe, seeding
from mae_pipe.catalog import Catalog
from mae_pipe.data import crops, decode, jitter, region
from mae_pipe.data.layout import Numbers
from mae_pipe.data.manifest import Labels
from mae_pipe.data.maps import IGNORE
from mae_pipe.data.randaugment import RandAugment
from mae_pipe.data.shelf import Shelf
from mae_pipe.errors import DataError, RecipeError
from mae_pipe.views import PLAIN, Crop, Range, Sides

Change = Callable[[NDArray[np.uint8], int], None]  # of a view, [C, H, W], in its place; where it is in the batch
BOXES = {"random": crops.random_boxes, "tf": crops.single_draws}
AT_ONCE = 32  # views of one decode, about


@dataclass(frozen=True)
class Wanted:
    """Which images, and how: all that another process needs to make the same ``Filler``.

    Attributes:
        folder: of the manifest.
        plugins: local files that the format of the shards may be in.
        data: crop, flip, jitter, RandAugment and size.
        seed: of the run.
        training: augmented; else the centre view.
        labels: which of a ``Batch``'s labels.
        views: of every image, from one decode. Maps go with the first.
    """

    folder: Path
    split: str
    plugins: tuple[Path, ...]
    data: recipe.Data
    seed: int
    training: bool
    labels: Labels
    views: tuple[Crop, ...] = PLAIN

    def shelf(self) -> Shelf:
        """The images, opened anew."""
        return Shelf(self.folder, self.split, Catalog(self.plugins))


class _View(NamedTuple):
    """One view of every image: its size, and of a random crop the scale; and the keys of its random numbers."""

    sides: Sides
    scale: Range
    crop: int
    flip: int
    jitter: int
    randaugment: int

    @classmethod
    def of(cls, wanted: Wanted, number: int) -> _View:
        view, data = wanted.views[number], wanted.data
        suffix = f"/{number}" if number else ""  # the first view is what a single one would be
        keys = (seeding.key(wanted.seed, name + suffix) for name in cls._fields[2:])
        return cls(view.sides(data.sides), view.scale or data.crop_scale, *keys)


class Filler:
    """Fills in the images of given index rows at given positions; how one is cut depends on its position alone.

    Args:
        shelf: the images.
        wanted: of them.
    """

    def __init__(self, shelf: Shelf, wanted: Wanted) -> None:
        self._shelf, self._data = shelf, wanted.data
        self._crop = self._data.crop if wanted.training else "none"
        self._flip = self._data.flip if self._crop != "none" else 0.0
        self._jitter = self._data.jitter if self._crop != "none" else (0.0, 0.0, 0.0, 0.0)
        self._randaugment = RandAugment(self._data) if self._data.randaugment and self._crop != "none" else None
        if self._randaugment is not None and wanted.labels == "map":
            raise RecipeError('randaugment moves pixels and leaves maps where they are; set data.randaugment=""')
        self._filter = decode.FILTERS[self._data.interpolation]
        self._views = [_View.of(wanted, number) for number in range(len(wanted.views))]

    def prepare(
        self, numbers: Numbers, positions: Numbers, pixels: Sequence[NDArray[np.uint8]], maps: NDArray[np.int64] | None
    ) -> Callable[[Iterable[int]], None]:
        """The function that fills given places of ``pixels``, each [B, V, C, h, w], and of ``maps``, [B, H, W]."""
        self._shelf.check_rows(numbers[numbers >= 0])
        cuts = [self._cuts(view, numbers, positions) for view in self._views]
        changes = [self._change(view, positions) for view in self._views]
        seen = [group[:, view] for group in pixels for view in range(group.shape[1])]  # of each view: [B, C, h, w]
        together, first = [], 0  # the cuts of each of ``pixels``: [B][V]
        for group in pixels:
            together.append(list(zip(*cuts[first : first + group.shape[1]], strict=True)))
            first += group.shape[1]

        def fill(places: Iterable[int]) -> None:
            for number, run in _runs(places, numbers, len(self._views)):
                if number < 0:
                    for group in pixels:
                        group[run] = 0
                    if maps is not None:
                        maps[run] = IGNORE
                    continue
                wanted = [cut for group in together for image in group[run] for cut in image]
                self._cut(number, wanted, [group[run].reshape(-1, *group.shape[2:]) for group in pixels])
                for place in range(run.start, run.stop):
                    for change, view in zip(changes, seen, strict=True):
                        if change is not None:
                            change(view[place], place)
                    if maps is not None:
                        maps[place] = self._map(number, cuts[0][place])

        return fill

    def _cut(self, number: int, cuts: Sequence[crops.Cut], outs: Sequence[NDArray[np.uint8]]) -> None:
        """Fill all views of ``outs``, each [views, C, h, w], with cuts of one image, which is decoded once."""
        stored = self._shelf.read(number)
        if region.views(stored, self._shelf.marks(number), cuts, outs, self._filter):
            return
        try:
            decode.views(stored, cuts, outs, self._filter)
        except MemoryError:
            raise
        except Exception as error:  # decoders of damaged files raise whatever they like
            raise self._shelf.undecodable(number, error) from error

    def _change(self, of: _View, positions: Numbers) -> Change | None:
        """What is done to the pixels of a view, if anything is."""
        if (augment := self._randaugment) is not None:
            drawn = augment.draw(of.randaugment, positions)
            return lambda seen, place: augment.change(seen, drawn[place])
        if not any(self._jitter):
            return None
        orders, factors = jitter.draw(of.jitter, positions, self._jitter)

        def jittered(seen: NDArray[np.uint8], place: int) -> None:
            changed = jitter.jittered(seen.transpose(1, 2, 0), orders[place], factors[place], self._jitter)
            seen[:] = changed.transpose(2, 0, 1)

        return jittered

    def _map(self, number: int, cut: crops.Cut) -> NDArray[np.uint8]:
        """[H, W]: the classes of the pixels of a cut, the nearest ones."""
        data, index = self._shelf.read_map(number), self._shelf.index
        try:
            map_ = decode.map_of(data)
            if map_.size != (index.width[number], index.height[number]):
                raise DataError(f"its map has {map_.width} x {map_.height} pixels")
            return decode.view(map_, cut, self._views[0].sides, decode.FILTERS["nearest"])[..., 0]
        except MemoryError:
            raise
        except Exception as error:  # as above
            raise self._shelf.undecodable(number, error) from error

    def _cuts(self, of: _View, numbers: Numbers, positions: Numbers) -> list[crops.Cut]:
        """How each image of a batch is cropped and mirrored in one view."""
        data, widths, heights = self._data, self._shelf.index.width[numbers], self._shelf.index.height[numbers]
        mirrored = crops.flips(of.flip, positions, self._flip).tolist()
        if self._crop in BOXES:
            rule = BOXES[self._crop]
            boxes = rule(of.crop, positions, widths, heights, of.scale, data.crop_ratio).tolist()
            return [crops.Cut((*box,), None, flip) for box, flip in zip(boxes, mirrored, strict=True)]
        sizes = list(zip(widths.tolist(), heights.tolist(), strict=True))
        if self._crop == "fixed":
            draws = seeding.uniforms(of.crop, positions, 2).tolist()
            cuts = [
                crops.fixed(w, h, of.sides, data.crop_share, (across, down))
                for (w, h), (across, down) in zip(sizes, draws, strict=True)
            ]
        else:
            cuts = [crops.centre(w, h, of.sides, data.centre_share) for w, h in sizes]
        return [cut._replace(mirrored=flip) for cut, flip in zip(cuts, mirrored, strict=True)]


def _runs(places: Iterable[int], numbers: Numbers, views: int) -> Iterator[tuple[int, slice]]:
    """Neighbouring places of the same image: its number, and where they are."""
    begun: list[int] = []
    most = max(1, AT_ONCE // views)
    for place in places:
        if begun and (place != begun[-1] + 1 or numbers[place] != numbers[begun[0]] or len(begun) == most):
            yield int(numbers[begun[0]]), slice(begun[0], begun[-1] + 1)
            begun = []
        begun.append(place)
    if begun:
        yield int(numbers[begun[0]]), slice(begun[0], begun[-1] + 1)
