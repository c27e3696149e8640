"""Weights from elsewhere, and for elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mae_pipe.verbs.given import Place, path_of

if TYPE_CHECKING:
    from mae_pipe.interop.imports import Arrival


def import_weights(
    file: Place,
    out: Place,
    *,
    family: Literal["official", "timm", "huggingface", "dino", "dinov2", "moco", "beit"] | None = None,
    heads: int | None = None,
    decoder_heads: int | None = None,
    target: Literal["pixel", "normalized_pixel"] | None = None,
    classes: Sequence[str] | None = None,
    encoder_only: bool = False,
) -> Arrival:
    """Make the run folder ``out`` of the weights in ``file``, as ``mae-pipe import`` (docs/weights.md).

    Args:
        family: whose names they are; default: recognised.
        heads, decoder_heads: attention heads, where the width does not say them.
        target: what a decoder predicts.
        classes: names of a classifier's classes; default: those beside the file, or else their numbers.
        encoder_only: leave a decoder or a classifier out.

    Raises:
        MaePipeError: the file is damaged, of no known family, or does not fit to the last weight; nothing is written.
    """
    from mae_pipe.interop.imports import bring_in

    return bring_in(
        Path(file),
        Path(out),
        family=family,
        heads=heads,
        decoder_heads=decoder_heads,
        target=target,
        classes=classes,
        encoder_only=encoder_only,
    )


def export(
    run: Place,
    to: Literal["timm", "huggingface", "official", "onnx"],
    out: Place | None = None,
    *,
    features: Literal["tokens", "token", "mean"] = "tokens",
    normalise: bool = False,
) -> tuple[Path, list[str]]:
    """Write the newest weights of ``run`` in the form of other code, as ``mae-pipe export`` (docs/weights.md).

    Args:
        out: default: in ``run``/export.
        features: ONNX, of an encoder: all tokens, the class token, or the mean of the patches.
        normalise: ONNX: the graph takes images in [0, 1] and normalises them.

    Returns:
        What was written, and sentences on what the form could not say.

    Raises:
        MaePipeError: the run has no weights yet, or something that the form has no place for.
    """
    from mae_pipe.interop.exports import send_out

    return send_out(Path(run), to, path_of(out), features=features, normalise=normalise)
