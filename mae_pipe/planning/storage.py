"""Disk that a run takes."""

from __future__ import annotations

from dataclasses import dataclass

from mae_pipe.planning.memory import MASTER
from mae_pipe.tables import Saving

IMAGE = 147_897_477_120 / 1_281_167  # bytes: ImageNet's own training files


@dataclass(frozen=True)
class Storage:
    """Bytes.

    Attributes:
        checkpoint: one; float32 weights and AdamW's two moments.
        run: all that are kept, the one that is being written, and the plain weights.
        shards: of one epoch's images.
    """

    checkpoint: int
    run: int
    shards: int


def storage(
    parameters: int, encoder: int, others: int, saving: Saving, *, epochs: float, images: int, image: float = IMAGE
) -> Storage:
    """Of a run of ``epochs`` on ``images`` images of ``image`` bytes each; ``encoder``: its numbers."""
    one = MASTER * parameters + others
    kept = saving.keep_last + 1
    if saving.keep_every_epochs is not None:
        kept += int(epochs / saving.keep_every_epochs)
    return Storage(one, kept * one + 4 * (parameters + encoder) + 2 * others, round(images * image))
