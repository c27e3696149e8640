"""Which views of an image a method learns from: how each is cropped, and how its colours change."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

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


def groups(views: Sequence[Crop], otherwise: Sides) -> list[tuple[Sides, int]]:
    """Sizes, and how many views that follow one another have each: these are together in one tensor of a batch."""
    sizes = (view.sides(otherwise) for view in views)
    return [(sides, len(list(same))) for sides, same in itertools.groupby(sizes)]
