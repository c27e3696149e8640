"""Which views of an image a method learns from: how each is cropped, and how its colours change."""

from __future__ import annotations

from dataclasses import dataclass

Range = tuple[float, float]


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
