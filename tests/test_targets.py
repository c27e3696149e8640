"""Reconstruction targets: the contract for every installed one, and what each promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mae_pipe.catalog import Catalog
from mae_pipe.contracts import Target, View
from mae_pipe.errors import MaePipeError, PluginError
from mae_pipe.patches import patchify, unpatchify
from mae_pipe.tables import TokenizerShape
from mae_pipe.testing import check_target
from mae_pipe.tokenizer.folder import About, save_tokenizer
from mae_pipe.tokenizer.network import DiscreteVae

CATALOG = Catalog()


def view_of(size: int, patch: int | tuple[int, int] = 8) -> View:
    sides = (patch, patch) if isinstance(patch, int) else patch
    return View(size, size, patch=sides, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def images_of(count: int, size: int) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(9)) * 0.7 + 0.2


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What a target cannot do without, by its name."""
    folder, shape = tmp_path_factory.mktemp("tok"), TokenizerShape(codebook=16, code_width=4, width=4, downsampling=4)
    torch.manual_seed(0)
    save_tokenizer(
        folder, About(layout="mae-pipe", codebook=16, downsampling=4, shape=shape), DiscreteVae(shape).state_dict()
    )
    return {
        "dvae": {"tokenizer": str(folder)},
        "feature": {"teacher": "test_vit", "weights": "none"},
        "pca": {"components": 12},
    }


@pytest.mark.parametrize("name", CATALOG.names("target"))
@pytest.mark.parametrize("patch", [4, 14])
def test_every_installed_target_keeps_the_contract(name: str, patch: int, options: dict[str, dict[str, Any]]) -> None:
    view = view_of(4 * patch, patch)
    check_target(CATALOG.build("target", name, options.get(name, {}), view=view), view=view)


@pytest.mark.parametrize("name", ["hog", "normalized_pixel", "pca", "pixel"])
@pytest.mark.parametrize("channels", [1, 4, 13])
def test_any_number_of_channels_and_patches_that_are_not_square_will_do(
    name: str, channels: int, options: dict[str, dict[str, Any]]
) -> None:
    view = View(16, 48, patch=(4, 12), mean=(0.5,) * channels, std=tuple(0.2 + 0.01 * c for c in range(channels)))
    check_target(CATALOG.build("target", name, options.get(name, {}), view=view), view=view)


def test_a_path_that_is_not_there_is_refused_in_a_sentence(tmp_path: Path) -> None:
    for name, given in (("dvae", {"tokenizer": str(tmp_path)}), ("feature", {"teacher": str(tmp_path)})):
        with pytest.raises(MaePipeError, match=str(tmp_path)):
            CATALOG.build("target", name, given, view=view_of(32))


@pytest.mark.parametrize("name", ["pixel", "normalized_pixel"])
def test_a_perfect_prediction_costs_nothing_and_looks_like_the_original(name: str) -> None:
    target: Target = CATALOG.build("target", name, {}, view=view_of(32))
    images = images_of(2, 32)
    truth = target.truth(images)
    assert target.loss(truth, truth).max().item() == 0
    assert torch.allclose(target.picture(truth, images), images, atol=1e-5)


def test_normalized_patches_have_no_mean_and_unit_unbiased_variance() -> None:
    truth = CATALOG.build("target", "normalized_pixel", {}, view=view_of(32)).truth(images_of(2, 32)).double()
    assert truth.mean(-1).abs().max().item() < 1e-5
    assert truth.var(-1, unbiased=True).sub(1).abs().max().item() < 1e-4


def test_a_flat_patch_is_finite_when_normalized() -> None:
    truth = CATALOG.build("target", "normalized_pixel", {}, view=view_of(32)).truth(torch.full((1, 3, 32, 32), 0.3))
    assert truth.abs().max().item() < 1e-3


def test_the_picture_of_normalized_pixels_says_whose_statistics_it_has() -> None:
    assert "original patch" in CATALOG.build("target", "normalized_pixel", {}, view=view_of(32)).caption
    assert CATALOG.build("target", "pixel", {}, view=view_of(32)).caption == ""


def test_a_patch_lists_rows_then_columns_then_channels() -> None:
    images = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 12)
    for b, row, col, p, q, c in [(0, 0, 0, 0, 0, 0), (1, 1, 2, 1, 0, 2), (0, 1, 0, 0, 1, 1)]:
        assert patches[b, 3 * row + col, (p * 2 + q) * 3 + c] == images[b, c, 2 * row + p, 2 * col + q]
    assert torch.equal(unpatchify(patches, 2, 2, 3), images)


class _Pixels(Target):
    """A right target, to be broken in one way at a time."""

    width = 48

    def truth(self, images: Tensor) -> Tensor:
        return patchify(images, 4)

    def loss(self, prediction: Tensor, truth: Tensor) -> Tensor:
        return (prediction - truth).square().mean(-1)

    def picture(self, prediction: Tensor, images: Tensor) -> Tensor:
        return images


class _Reduced(_Pixels):
    def loss(self, prediction: Tensor, truth: Tensor) -> Tensor:
        return super().loss(prediction, truth).mean()


class _Mixed(_Pixels):
    def loss(self, prediction: Tensor, truth: Tensor) -> Tensor:
        loss = super().loss(prediction, truth)
        return loss / loss.mean()


class _Learned(_Pixels):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))


class _Detached(_Pixels):
    def loss(self, prediction: Tensor, truth: Tensor) -> Tensor:
        return super().loss(prediction.detach(), truth) + 0 * prediction.sum(-1)


class _Double(_Pixels):
    def truth(self, images: Tensor) -> Tensor:
        return super().truth(images).double()


class _Wide(_Pixels):
    width = 0


class _Blind(_Pixels):
    def picture(self, prediction: Tensor, images: Tensor) -> Tensor:
        return prediction


@pytest.mark.parametrize(
    ("target", "why"),
    [
        (_Reduced(), r"loss gave shape \[\], expected \[3, 16\]"),
        (_Mixed(), "only hidden patches"),
        (_Learned(), "trainable parameters"),
        (_Detached(), "no finite gradient"),
        (_Double(), "float64"),
        (_Wide(), "width is 0"),
        (_Blind(), "picture gave shape"),
    ],
)
def test_the_check_finds_a_target_that_breaks_the_contract(target: Target, why: str) -> None:
    check_target(_Pixels(), view=view_of(16, 4))
    with pytest.raises(PluginError, match=why):
        check_target(target, view=view_of(16, 4))
