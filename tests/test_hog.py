"""Histograms of oriented gradients, against scikit-image's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from skimage.feature import hog

from mae_pipe.catalog import Catalog
from mae_pipe.contracts import Target, View
from mae_pipe.errors import PluginError

VIEW = View(32, 48, patch=(16, 16), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def made(view: View = VIEW, **options: Any) -> Target:
    target: Target = Catalog().build("target", "hog", options, view=view)
    return target


def pictures(count: int = 3) -> np.ndarray[Any, Any]:
    """[B, H, W, 3] in [0, 1], from bytes: many gradients are exactly horizontal, vertical or zero."""
    rng = np.random.default_rng(4)
    smooth = rng.integers(0, 256, (count, 8, 12, 3)).repeat(4, 1).repeat(4, 2) // 2
    return (smooth + rng.integers(0, 9, (count, 32, 48, 3))) / 255


@pytest.mark.parametrize(("orientations", "cells"), [(9, 2), (8, 4), (12, 1)])
@pytest.mark.parametrize("colour", [True, False])
def test_the_values_are_scikit_images(orientations: int, cells: int, colour: bool) -> None:
    colours, side = pictures(), 16 // cells
    images = VIEW.normalised(torch.from_numpy(colours).permute(0, 3, 1, 2))
    truth = made(orientations=orientations, cells=cells, colour=colour).truth(images).numpy()

    def theirs(image: np.ndarray[Any, Any], axis: int | None) -> np.ndarray[Any, Any]:
        found = hog(
            np.rint(image * 255), orientations, (side, side), (1, 1), "L2", feature_vector=False, channel_axis=axis
        )
        return np.asarray(found).reshape(2 * cells, 3 * cells, orientations)

    for image, ours in zip(colours, truth, strict=True):
        parts = [theirs(image[..., c], None) for c in range(3)] if colour else [theirs(image, -1)]
        whole = np.stack(parts, 2)  # [rows of cells, columns of cells, channels, orientations]
        split = whole.reshape(2, cells, 3, cells, -1).transpose(0, 2, 1, 3, 4).reshape(6, -1)
        assert np.abs(split - ours).max() < 1e-4


def test_the_picture_has_strokes_along_an_edge() -> None:
    colours = torch.zeros(1, 3, 32, 48)
    colours[..., 20:] = 1.0  # an upright edge
    target = made()
    images = VIEW.normalised(colours)
    drawn = VIEW.colours(target.picture(target.truth(images), images))[0, 0]
    row, col = divmod(int(drawn.argmax()), 48)
    assert drawn.max() == pytest.approx(1, abs=1e-4)
    assert 16 <= col < 24
    cell = drawn[row // 8 * 8 : row // 8 * 8 + 8, 16:24]
    assert cell.sum(0).max() > 2 * cell.sum(1).max()  # upright, not level


def test_other_channels_and_patches_work_and_cells_must_divide() -> None:
    view = View(28, 28, patch=(14, 14), mean=(0.5,) * 6, std=(0.2,) * 6)
    target = made(view)
    assert target.width == 2 * 2 * 6 * 9
    assert target.truth(torch.randn(2, 6, 28, 28)).shape == (2, 4, 216)
    with pytest.raises(PluginError, match=r"cells must divide the patch's 14 x 14 pixels \(\[1, 2, 7, 14\]\), got 4"):
        made(view, cells=4)
