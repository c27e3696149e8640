"""Fixed sine and cosine positions of patches (MAE, He et al. 2022; after Vaswani et al. 2017)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


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
