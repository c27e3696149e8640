"""Principal components of patches, against scikit-learn and an SVD in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from mae_pipe.catalog import Catalog
from mae_pipe.contracts import Target, View
from mae_pipe.errors import PluginError
from mae_pipe.patches import patchify, unpatchify

VIEW = View(16, 24, patch=(4, 4), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def made(**options: Any) -> Any:
    target: Target = Catalog().build("target", "pca", options, view=VIEW)
    return target


def batches() -> Iterator[Tensor]:
    """Smooth pictures with a little noise: falling eigenvalues, none of them equal."""
    generator = torch.Generator().manual_seed(6)
    for _ in range(5):
        coarse = torch.randn(8, 3, 4, 6, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, (16, 24), mode="bilinear")
        yield smooth + 0.3 + 0.05 * torch.randn(smooth.shape, generator=generator)


def patches() -> Tensor:
    return torch.cat([patchify(batch, (4, 4)).flatten(0, 1) for batch in batches()])


@pytest.fixture(scope="module")
def fitted() -> Any:
    target = made(components=12)
    target.fit(batches())
    return target


def test_the_coefficients_are_scikit_learns(fitted: Any) -> None:
    theirs = PCA(12, svd_solver="full").fit(patches().double().numpy())
    images = next(batches())
    expected = torch.from_numpy(theirs.transform(patchify(images, (4, 4)).flatten(0, 1).double().numpy()))
    found: Tensor = fitted.truth(images).flatten(0, 1).double()
    signs = (expected * found).sum(0).sign()
    assert (found - expected * signs).abs().max() < 1e-4
    whitened = made(components=12, whiten=True)
    whitened.fit(batches())
    scale = torch.from_numpy(theirs.explained_variance_).sqrt()
    assert (whitened.truth(images).flatten(0, 1) * scale - found).abs().max() < 1e-4


def test_the_axes_are_those_of_an_svd_in_float64(fitted: Any) -> None:
    rows = patches().double()
    axes = torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh[:12]
    cosines = (axes * fitted.axes.double()).sum(1).abs()
    assert (cosines - 1).abs().max() < 1e-6
    assert (fitted.mean - rows.mean(0)).abs().max() < 1e-6


def test_all_components_give_the_image_back_and_few_the_nearest() -> None:
    images = next(batches())
    target = made(components=48)
    target.fit(batches())
    assert torch.allclose(target.picture(target.truth(images), images), images, atol=1e-4)
    few = made(components=3)
    few.fit(batches())
    rows = patchify(images, (4, 4)).double() - few.mean.double()
    nearest = unpatchify(rows @ few.axes.T.double() @ few.axes.double() + few.mean.double(), (4, 4), 4, 6)
    assert torch.allclose(few.picture(few.truth(images), images).double(), nearest, atol=1e-5)
    assert few.loss(few.truth(images), few.truth(images)).max() == 0


def test_a_fit_is_kept_in_the_state_and_is_the_same_again(fitted: Any) -> None:
    again, copy = made(components=12), made(components=12)
    again.fit(batches())
    assert torch.equal(again.axes, fitted.axes)
    copy.load_state_dict(fitted.state_dict())
    copy.bfloat16()  # as an engine does: the axes must not be rounded
    assert copy.axes.dtype == torch.float32
    images = next(batches())
    assert torch.equal(copy.truth(images), fitted.truth(images))


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(PluginError, match="components must be from 1 to 48"):
        made(components=49)
    with pytest.raises(PluginError, match="24 patches are too few to fit 40 components"):
        made(components=40).fit(iter([torch.randn(1, 3, 16, 24)]))
    pixels = torch.randint(0, 256, (9, 1, 16, 24), generator=torch.Generator().manual_seed(1)) / 255
    grey = VIEW.normalised(pixels.expand(-1, 3, -1, -1))
    with pytest.raises(PluginError, match=r"vary in 16 directions only.*components=16"):
        made(components=17).fit(iter([grey]))
    made(components=16).fit(iter([grey]))
    with pytest.raises(PluginError, match="vary in 0 directions only"):
        made(components=1).fit(iter([torch.zeros(9, 3, 16, 24)]))
