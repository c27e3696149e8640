"""Which views of an image a method learns from: how each is cropped, and how its colours change."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mae_pipe.errors import RecipeError

if TYPE_CHECKING:
    from mae_pipe.contracts import View

Range = tuple[float, float]
Sides = tuple[int, int]  # height and width, pixels


@dataclass(frozen=True)
class Crop:
    """One view. What is None is as the recipe's ``[data]`` says; the colours of a plain one stay as they are.

    Attributes:
        size: pixels of a side, or (height, width); a multiple of the encoder's patch.
        scale: of the image's area, of a random crop.
        jitter: brightness, contrast, saturation and hue, as torchvision's ColorJitter, in a random order.
        jitter_share: probability of it.
        grey: probability of no colours.
        blur: probability of a Gaussian blur.
        sigma: of the blur, pixels: uniform between the two.
        solarize: probability that pixels above the middle are inverted.
    """

    size: int | tuple[int, int] | None = None
    scale: Range | None = None
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_share: float = 0.8
    grey: float = 0.0
    blur: float = 0.0
    sigma: Range = (0.1, 2.0)
    solarize: float = 0.0

    @property
    def plain(self) -> bool:
        """Whether its colours stay as they are."""
        jittered = any(self.jitter) and self.jitter_share > 0
        return not (jittered or self.grey or self.blur or self.solarize)

    def sides(self, otherwise: Sides) -> Sides:
        """Its height and width, pixels; ``otherwise`` where it has no size of its own."""
        if self.size is None:
            return otherwise
        return (self.size, self.size) if isinstance(self.size, int) else self.size


PLAIN = (Crop(),)


def check(views: Sequence[Crop], view: View) -> None:
    """Raise RecipeError for views whose sizes patches do not tile, or whose colours an image has not."""
    high, wide = view.patch
    for height, width in (crop.sides((view.height, view.width)) for crop in views):
        if height % high or width % wide:
            raise RecipeError(
                f"the method wants views of {height} x {width} pixels, which patches of {high} x {wide} do not tile; "
                "set its sizes to multiples of encoder.patch"
            )
    if view.channels not in (1, 3) and not all(crop.plain for crop in views):
        raise RecipeError(
            "the method changes colours of its views, which is for colour or grey images, not for "
            f"{view.channels} channels (data.mean); set its options so that it changes none, or choose another method"
        )


def groups(views: Sequence[Crop], otherwise: Sides) -> list[tuple[Sides, int]]:
    """Sizes, and how many views that follow one another have each: these are together in one tensor of a batch."""
    sizes = (view.sides(otherwise) for view in views)
    return [(sides, len(list(same))) for sides, same in itertools.groupby(sizes)]
