"""The table ``[monitor]`` of a recipe."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, Field

from mae_pipe.tables import Positive, Strength, Table

Point = tuple[Strength, float, float]  # epoch; least and greatest expected training loss


def _in_order(band: tuple[Point, ...]) -> tuple[Point, ...]:
    if any(low >= high for _, low, high in band) or any(a[0] >= b[0] for a, b in pairwise(band)):
        raise ValueError("expected [epoch, low, high] with rising epochs, and low below high")
    return band


class Monitor(Table):
    """What is looked at during pretraining, without labels but for ``knn``."""

    every_epochs: Annotated[float, Field(ge=0)] = 0.0  # and before the first step and after the last; 0: never
    images: Positive = 512  # of ``split``, spread evenly over it
    split: str = "val"
    knn: Annotated[int, Field(ge=0)] = 0  # labelled training images that vote; 0: no vote
    band: Annotated[tuple[Point, ...], AfterValidator(_in_order)] = ()  # straight lines lead from one to the next
