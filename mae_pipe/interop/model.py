"""What travels: weights under the official names, with the shapes that they have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mae_pipe.autoencoder import Decoder, build_encoder
from mae_pipe.errors import DataError
from mae_pipe.interop.official import official_name
from mae_pipe.recipe import Data, DecoderShape, EncoderShape

LISTED = 10  # names in an error


@dataclass(frozen=True)
class Head:
    """A linear classifier.

    Attributes:
        pool: of what it classifies the feature: the class token, or the mean of the patch tokens.
        norm: "encoder": tokens after the encoder's final norm; "own": a norm of the pooled feature instead of that.
        classes: their names.
    """

    pool: Literal["token", "mean"]
    norm: Literal["encoder", "own"]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """An encoder, and a decoder or a head or neither.

    Attributes:
        weights: under the official names, float32; class tokens after the first are timm's ``reg_token``.
        data: size, mean, std and the centre crop are the model's; the rest means nothing.
        target, ratio: of a decoder: the pixel target that it predicts, the share of patches that is hidden.
        without: what a run has that is not here, as words for a person; "" if nothing.
    """

    weights: dict[str, Tensor]
    encoder: EncoderShape
    data: Data
    decoder: DecoderShape | None = None
    head: Head | None = None
    target: str = "normalized_pixel"
    ratio: float = 0.75
    without: str = ""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        (height, width), (high, wide) = self.data.sides, self.encoder.sides
        return height // high, width // wide


def shapes_of(model: Model) -> dict[str, tuple[int, ...]]:
    """The official name and shape of every weight that a model of these shapes has; nothing is allocated."""
    with torch.device("meta"):
        encoder = build_encoder(model.encoder, model.data.sides, channels=model.data.channels)
        found = {name: tuple(w.shape) for name, w in encoder.state_dict().items()}
        if model.decoder is not None:
            high, wide = model.encoder.sides
            decoder = Decoder(
                model.decoder,
                width=model.encoder.width,
                out=high * wide * model.data.channels,
                grid=encoder.grid,
                class_tokens=model.encoder.class_tokens,
            )
            found |= {str(official_name(f"decoder.{n}")): tuple(w.shape) for n, w in decoder.state_dict().items()}
    if model.head is not None:
        width, classes = model.encoder.width, len(model.head.classes)
        found |= {"head.weight": (classes, width), "head.bias": (classes,)}
        if model.head.norm == "own":
            found = {f"fc_{n}" if n.startswith("norm.") else n: shape for n, shape in found.items()}
    return found


def check(model: Model, what: str) -> None:
    """Every weight is there, no other is, each has its shape and is finite.

    Raises:
        DataError: naming the first ten that do not fit, and how many there are.
    """
    wanted, given = shapes_of(model), model.weights
    strange = sorted(given.keys() - wanted.keys())
    if strange:
        raise DataError(
            f"{what} holds {listed(strange)} that a ViT of these shapes has not; nothing is left out in silence, so it "
            "was not imported"
        )
    missing = sorted(wanted.keys() - given.keys())
    if missing:
        raise DataError(f"{what} lacks {listed(missing)}; a part of a model is not imported, so get the whole file")
    wrong = [n for n in sorted(wanted) if tuple(given[n].shape) != wanted[n]]
    if wrong:
        said = f"{wrong[0]!r} is {list(given[wrong[0]].shape)}, expected {list(wanted[wrong[0]])}"
        raise DataError(f"{what} holds {listed(wrong)} of another shape ({said}); it is no ViT that fits together")
    broken = [n for n in sorted(wanted) if not bool(torch.isfinite(given[n]).all())]
    if broken:
        raise DataError(f"{what} is damaged: {listed(broken)} with numbers that are not finite; get it again")


def listed(names: Iterable[str] | Mapping[str, object]) -> str:
    """``3 weights ('a', 'b', 'c')``, at most ten of them by name."""
    known = list(names)
    more = ", ..." if len(known) > LISTED else ""
    return f"{len(known)} weight{'s' * (len(known) != 1)} ({', '.join(map(repr, known[:LISTED]))}{more})"
