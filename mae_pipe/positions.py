"""Positions of patches: sines and cosines (MAE, He et al. 2022; after Vaswani et al. 2017); tables of other sizes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mae_pipe.contracts import Grid

TABLE = "pos_embed"  # of an encoder
BIAS = "rel_pos_bias.relative_position_bias_table"  # of an encoder, or of each of its blocks
OF_CLASS = 3  # rows of a bias table for class tokens, its last


def sincos_positions(width: int, rows: int, cols: int, *, first: int = 1) -> Tensor:
    """[1, T + N, D] float32: a row of zeros for each of ``first`` = T class tokens, then one row a patch.

    Numbers [0, D/2) tell the column and [D/2, D) the row, each as D/4 sines then D/4
    cosines: the order of the official weights, which other libraries swap. Computed in
    float64, so that every machine gets the same table.
    """
    if width % 4:
        raise ValueError(f"sin-cos positions need a width that is a multiple of 4, got {width}")
    quarter = width // 4
    omega = 10000.0 ** (-np.arange(quarter, dtype=np.float64) / quarter)  # [D/4]
    row, col = np.divmod(np.arange(rows * cols), cols)  # [N] each
    halves = [np.outer(place, omega) for place in (col, row)]  # [N, D/4] each
    table = np.concatenate([f(half) for half in halves for f in (np.sin, np.cos)], axis=1)  # [N, D]
    return torch.from_numpy(np.concatenate([np.zeros((first, width)), table])[None].astype(np.float32))


def resized(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """[1, T + N, D] of the grid ``old`` -> of ``new``: rows of class tokens stay, those of patches are bicubic.

    As the official code (``interpolate_pos_embed``): the kernel is not widened where the grid shrinks, so a small
    table is a sample of the large one. That code is for square grids; here each axis has its own scale.
    """
    first = table.shape[1] - old.size
    maps = table[:, first:].reshape(1, old.rows, old.cols, -1).permute(0, 3, 1, 2)  # [1, D, rows, cols]
    maps = F.interpolate(maps, (new.rows, new.cols), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :first], maps.flatten(2).transpose(1, 2)], dim=1)


def resizing(old: Grid, new: Grid, like: Tensor) -> Tensor:
    """[N', N]: what turns patches' rows of ``old`` into those of ``new``, of the device and precision of ``like``.

    For training: as a product, its gradient is the same every time on a GPU, as that of an interpolation is not.
    """
    return resized(torch.eye(old.size, device=like.device)[None], old, new)[0].to(like.dtype)


def resized_bias(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """[distances + 3, A] of relative positions on the grid ``old`` -> on ``new``, where a patch is another share.

    Bicubic over distances, with 0 staying at 0; the rows of class tokens, the last three, stay.
    """
    were, are = (Grid(2 * grid.rows - 1, 2 * grid.cols - 1) for grid in (old, new))
    return torch.cat([resizing(were, are, table) @ table[:-OF_CLASS], table[-OF_CLASS:]])


def refitted(weights: Mapping[str, Tensor], old: Grid, new: Grid, *, first: int, under: str = "") -> dict[str, Tensor]:
    """An encoder's weights of the grid ``old`` for ``new``: tables are interpolated, all else stays.

    Args:
        first: T, class tokens.
        under: what names begin with, such as "encoder.".
    """
    found = dict(weights)
    table = found.get(under + TABLE)
    if old != new and table is not None and table.dim() == 3 and table.shape[1] == first + old.size:
        found[under + TABLE] = resized(table, old, new)
    distances = (2 * old.rows - 1) * (2 * old.cols - 1)
    for name, bias in weights.items():
        fits = name.startswith(under) and name.endswith(BIAS) and bias.dim() == 2 and len(bias) == distances + OF_CLASS
        if old != new and fits:
            found[name] = resized_bias(bias, old, new)
    return found


def own_biases(weights: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """An encoder's weights with a copy of its shared bias for every block in its place (BEiT, Bao et al. 2022)."""
    found = dict(weights)
    shared = found.pop(BIAS, None)  # where it is missing, whoever fills the encoder says so
    return found if shared is None else found | {f"blocks.{number}.{BIAS}": shared.clone() for number in range(depth)}
