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
        views: of every image, from one decode; more than one give ``pixels`` an axis of them. Maps go with the first.
    """

    folder: Path
    split: str
    plugins: tuple[Path, ...]
    data: recipe.Data
    seed: int
    training: bool
    labels: Labels
    views: int = 1

    def shelf(self) -> Shelf:
        """The images, opened anew."""
        return Shelf(self.folder, self.split, Catalog(self.plugins))


class _Keys(NamedTuple):
    """Of the random numbers of one view."""

    crop: int
    flip: int
    jitter: int
    randaugment: int

    @classmethod
    def of(cls, seed: int, view: int) -> _Keys:
        suffix = f"/{view}" if view else ""  # the first view is what a single one would be
        return cls(*(seeding.key(seed, name + suffix) for name in cls._fields))


class Filler:
    """Fills in the images of given index rows at given positions; how one is cut depends on its position alone.

    Args:
        shelf: the images.
        wanted: of them.
    """

    def __init__(self, shelf: Shelf, wanted: Wanted) -> None:
        self._shelf, self._data, self._views = shelf, wanted.data, wanted.views
        self._crop = self._data.crop if wanted.training else "none"
        self._flip = self._data.flip if self._crop != "none" else 0.0
        self._jitter = self._data.jitter if self._crop != "none" else (0.0, 0.0, 0.0, 0.0)
        self._randaugment = RandAugment(self._data) if self._data.randaugment and self._crop != "none" else None
        if self._randaugment is not None and wanted.labels == "map":
            raise RecipeError('randaugment moves pixels and leaves maps where they are; set data.randaugment=""')
        self._filter = decode.FILTERS[self._data.interpolation]
        self._keys = [_Keys.of(wanted.seed, view) for view in range(self._views)]

    def prepare(
        self, numbers: Numbers, positions: Numbers, pixels: NDArray[np.uint8], maps: NDArray[np.int64] | None
    ) -> Callable[[Iterable[int]], None]:
        """The function that fills given places of ``pixels``, [B, V, C, H, W], and of ``maps``, [B, H, W]."""
        self._shelf.check_rows(numbers[numbers >= 0])
        cuts = [list(cut) for cut in zip(*(self._cuts(keys, numbers, positions) for keys in self._keys), strict=True)]
        changes = [self._change(keys, positions) for keys in self._keys]

        def fill(places: Iterable[int]) -> None:
            for number, run in _runs(places, numbers, self._views):
                if number < 0:
                    pixels[run] = 0
                    if maps is not None:
                        maps[run] = IGNORE
                    continue
                self._view(number, [cut for several in cuts[run] for cut in several], pixels[run])
                for place in range(run.start, run.stop):
                    for change, seen in zip(changes, pixels[place], strict=True):
                        if change is not None:
                            change(seen, place)
                    if maps is not None:
                        maps[place] = self._map(number, cuts[place][0])

        return fill

    def _view(self, number: int, cuts: Sequence[crops.Cut], out: NDArray[np.uint8]) -> None:
        """Fill ``out``, [..., C, H, W], with cuts of one image, which is decoded once."""
        stored = self._shelf.read(number)
        out = out.reshape(len(cuts), *out.shape[-3:])
        if region.views(stored, self._shelf.marks(number), cuts, out, self._filter):
            return
        try:
            for cut, view in zip(cuts, out, strict=True):
                seen = decode.view_of(stored, self._data.channels, cut, self._data.sides, self._filter)
                view[:] = seen.transpose(2, 0, 1)
        except MemoryError:
            raise
        except Exception as error:  # decoders of damaged files raise whatever they like
            raise self._shelf.undecodable(number, error) from error

    def _change(self, keys: _Keys, positions: Numbers) -> Change | None:
        """What is done to the pixels of a view, if anything is."""
        if (augment := self._randaugment) is not None:
            drawn = augment.draw(keys.randaugment, positions)
            return lambda seen, place: augment.change(seen, drawn[place])
        if not any(self._jitter):
            return None
        orders, factors = jitter.draw(keys.jitter, positions, self._jitter)

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
            return decode.view(map_, cut, self._data.sides, decode.FILTERS["nearest"])[..., 0]
        except MemoryError:
            raise
        except Exception as error:  # as above
            raise self._shelf.undecodable(number, error) from error

    def _cuts(self, keys: _Keys, numbers: Numbers, positions: Numbers) -> list[crops.Cut]:
        """How each image of a batch is cropped and mirrored in one view."""
        data, widths, heights = self._data, self._shelf.index.width[numbers], self._shelf.index.height[numbers]
        mirrored = crops.flips(keys.flip, positions, self._flip).tolist()
        if self._crop in BOXES:
            rule = BOXES[self._crop]
            boxes = rule(keys.crop, positions, widths, heights, data.crop_scale, data.crop_ratio).tolist()
            return [crops.Cut((*box,), None, flip) for box, flip in zip(boxes, mirrored, strict=True)]
        sizes = list(zip(widths.tolist(), heights.tolist(), strict=True))
        if self._crop == "fixed":
            draws = seeding.uniforms(keys.crop, positions, 2).tolist()
            cuts = [
                crops.fixed(w, h, data.sides, data.crop_share, (across, down))
                for (w, h), (across, down) in zip(sizes, draws, strict=True)
            ]
        else:
            cuts = [crops.centre(w, h, data.sides, data.centre_share) for w, h in sizes]
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
