"""Partial finetuning: only the encoder's last blocks train (MAE, He et al. 2022, section 4.3)."""

from __future__ import annotations

from typing import Any

from torch import nn

from mae_pipe.autoencoder import Encoder

MLP_HALF = 0.5  # of blocks: the MLP of the last one, with its norm


def freeze_below(encoder: Encoder, blocks: float) -> list[nn.Module]:
    """Freeze all of ``encoder`` but its last ``blocks`` blocks and, with any of them, its final norm.

    What is frozen computes no gradients and keeps no activations for them, since nothing below it trains.

    Args:
        blocks: 0, ``MLP_HALF``, or a whole number; as many as there are: nothing is frozen, embeddings too.

    Returns:
        The parts that train. All else should stay in evaluation mode, without drop path.
    """
    depth = len(encoder.blocks)
    if blocks == depth:
        return [encoder]
    encoder.requires_grad_(False)
    trained: list[nn.Module] = list(encoder.blocks)[depth - int(blocks) :]
    if blocks == MLP_HALF:
        last: Any = encoder.blocks[-1]
        trained += [last.norm2, last.mlp, last.ls2, last.drop_path2]
    if blocks:
        trained.append(encoder.norm)
    for part in trained:
        part.requires_grad_(True)
    return trained
