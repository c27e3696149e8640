"""Mask samplers: the contract for every installed one, and what each promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mae_pipe.catalog import Catalog
from mae_pipe.contracts import Grid, MaskSampler
from mae_pipe.errors import PluginError, RecipeError
from mae_pipe.masking import Mask, visible_count
from mae_pipe.rng import Rng
from mae_pipe.testing import check_mask_sampler

CATALOG = Catalog()
GRID = Grid(14, 14)


def scores_of(name: str, images: int, grid: Grid = GRID, **options: Any) -> Tensor:
    sampler: MaskSampler = CATALOG.build("mask", name, options)
    pixels = torch.zeros(images, 3, grid.rows, grid.cols)
    return sampler.scores(pixels, grid, Rng(11, torch.arange(images)))


def hidden_maps(name: str, images: int, ratio: float, grid: Grid = GRID, **options: Any) -> Tensor:
    """[images, rows, cols] bool."""
    return Mask.from_scores(scores_of(name, images, grid, **options), ratio).as_map().view(-1, grid.rows, grid.cols)


@pytest.mark.parametrize("name", CATALOG.names("mask"))
def test_every_installed_sampler_keeps_the_contract(name: str) -> None:
    check_mask_sampler(CATALOG.build("mask", name, {}))


@pytest.mark.parametrize("name", CATALOG.names("mask"))
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.6, 0.75, 0.9])
def test_the_share_of_hidden_patches_is_exact(name: str, ratio: float) -> None:
    hidden = hidden_maps(name, 8, ratio).flatten(1).sum(1)
    assert hidden.tolist() == [196 - int(196 * (1 - ratio))] * 8


@given(st.integers(1, 400), st.floats(0, 0.999), st.integers(0, 2**31))
def test_a_mask_is_a_split_of_all_patches(patches: int, ratio: float, seed: int) -> None:
    scores = torch.rand(2, patches, generator=torch.Generator().manual_seed(seed))
    if int(patches * (1 - ratio)) < 1:
        with pytest.raises(RecipeError, match="leaves none"):
            visible_count(patches, ratio)
        return
    mask = Mask.from_scores(scores, ratio)
    assert mask.visible.shape[1] == int(patches * (1 - ratio))
    numbers = torch.arange(patches).expand(2, -1)
    assert torch.equal(torch.cat([mask.visible, mask.hidden], 1).sort(1).values, numbers)
    shuffled = torch.cat([mask.visible_of(numbers), mask.hidden_of(numbers)], 1)
    assert torch.equal(shuffled.gather(1, mask.restore), numbers)
    assert torch.equal(mask.as_map().gather(1, mask.hidden), torch.ones_like(mask.hidden, dtype=torch.bool))
    assert mask.as_map().sum().item() == mask.hidden.numel()
    if mask.hidden.shape[1]:
        highest_kept = scores.gather(1, mask.visible).max(1).values
        assert (highest_kept <= scores.gather(1, mask.hidden).min(1).values).all()


def test_random_hides_every_patch_equally_often() -> None:
    often = hidden_maps("random", 4000, 0.75).float().mean(0)
    assert often.mean().item() == pytest.approx(0.75, abs=1e-6)
    assert (often - 0.75).abs().max().item() < 5 * (0.75 * 0.25 / 4000) ** 0.5


def test_block_hides_every_patch_equally_often() -> None:
    often = hidden_maps("block", 4000, 0.5).float().mean(0)
    assert (often - 0.5).abs().max().item() < 5 * (0.5 * 0.5 / 4000) ** 0.5


def test_block_hides_regions() -> None:
    """Next to a hidden patch stands a hidden one far more often than by chance."""

    def together(name: str) -> float:
        hidden = hidden_maps(name, 500, 0.5).float()
        return (hidden[:, 1:] * hidden[:, :-1]).mean().item() / hidden.mean().item()

    assert together("random") == pytest.approx(0.5, abs=0.02)
    assert together("block") > 0.7


def test_grid_keeps_one_of_every_two_by_two_at_three_quarters() -> None:
    visible = ~hidden_maps("grid", 3, 0.75)
    expected = torch.zeros(14, 14, dtype=torch.bool)
    expected[::2, ::2] = True
    assert torch.equal(visible, expected.expand(3, -1, -1))


def test_grid_keeps_a_chessboard_at_one_half() -> None:
    visible = ~hidden_maps("grid", 1, 0.5)[0]
    assert torch.equal(visible, (torch.arange(14)[:, None] + torch.arange(14)) % 2 == 0)


def test_grid_keeps_one_of_every_four_by_four_at_fifteen_sixteenths() -> None:
    visible = ~hidden_maps("grid", 1, 1 - 1 / 16, Grid(16, 16))[0]
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[::4, ::4] = True
    assert torch.equal(visible, expected)


def test_grid_fills_up_at_random_between_lattices() -> None:
    first, second = hidden_maps("grid", 2, 0.6)
    assert not first[::2, ::2].any()
    assert not torch.equal(first, second)


@pytest.mark.parametrize("options", [{"blocks": 0}, {"min_side": 0.0}, {"min_side": 0.8}, {"max_side": 1.5}])
def test_block_refuses_rectangles_that_cannot_be(options: dict[str, float]) -> None:
    with pytest.raises(PluginError, match="'block' refuses its options"):
        CATALOG.build("mask", "block", options)


class _Global(MaskSampler):
    def scores(self, images: Tensor, grid: Grid, rng: Rng) -> Tensor:
        return torch.rand(len(images), grid.size)


class _Neighbour(MaskSampler):
    def scores(self, images: Tensor, grid: Grid, rng: Rng) -> Tensor:
        return rng.uniform(grid.size) + images.mean()


class _Short(MaskSampler):
    def scores(self, images: Tensor, grid: Grid, rng: Rng) -> Tensor:
        return rng.uniform(grid.size - 1) if grid.size > 1 else rng.uniform(2)


class _Endless(MaskSampler):
    def scores(self, images: Tensor, grid: Grid, rng: Rng) -> Tensor:
        return rng.uniform(grid.size) / 0


class _Double(MaskSampler):
    def scores(self, images: Tensor, grid: Grid, rng: Rng) -> Tensor:
        return rng.uniform(grid.size).double()


class _Vandal(MaskSampler):
    def scores(self, images: Tensor, grid: Grid, rng: Rng) -> Tensor:
        images.zero_()
        return rng.uniform(grid.size)


class _Moving(MaskSampler):
    calls = 0

    def scores(self, images: Tensor, grid: Grid, rng: Rng) -> Tensor:
        self.calls += 1
        return rng.uniform(grid.size) + self.calls


@pytest.mark.parametrize(
    ("sampler", "why"),
    [
        (_Global(), "global generator"),
        (_Neighbour(), "other images"),
        (_Short(), "shape"),
        (_Endless(), "not finite"),
        (_Double(), "float64"),
        (_Vandal(), "changed the images"),
        (_Moving(), "other scores"),
    ],
)
def test_the_check_finds_a_sampler_that_breaks_the_contract(sampler: MaskSampler, why: str) -> None:
    with pytest.raises(PluginError, match=why):
        check_mask_sampler(sampler)
