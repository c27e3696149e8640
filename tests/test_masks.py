"""Mask samplers: the contract for every installed one, and what each promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2
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


RATIOS = [*(round(0.05 * n, 2) for n in range(2, 20))]  # 0.1 to 0.95
GRIDS = [Grid(14, 14), Grid(16, 16), Grid(7, 7), Grid(6, 10), Grid(3, 17), Grid(2, 20)]


@pytest.mark.parametrize("name", CATALOG.names("mask"))
@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g.rows}x{g.cols}")
def test_the_share_is_exact_on_every_grid_for_every_ratio(name: str, grid: Grid) -> None:
    scores = scores_of(name, 4, grid)
    for ratio in RATIOS:
        hidden = Mask.from_scores(scores, ratio).as_map().sum(1)
        assert hidden.tolist() == [grid.size - int(grid.size * (1 - ratio))] * 4


EVEN: list[tuple[str, dict[str, Any], Grid, float]] = [
    ("random", {}, GRID, 0.75),
    ("random", {}, Grid(5, 9), 0.6),
    ("block", {}, GRID, 0.5),
    ("block", {"blocks": 2, "min_side": 0.2}, Grid(6, 11), 0.4),
    ("grid", {"shift": True}, Grid(8, 12), 0.75),
    ("grid", {"shift": True}, Grid(8, 8), 0.6),
    ("grid-block", {}, Grid(16, 16), 0.75),
    ("grid-block", {"side": 2}, GRID, 0.7),
    ("grid-block", {}, GRID, 0.75),  # 4 does not divide 14
    ("grid-block", {"side": 3, "shift": True}, Grid(6, 9), 0.5),
    ("checkerboard", {}, GRID, 0.5),
    ("checkerboard", {}, Grid(6, 10), 0.8),
    ("checkerboard", {"side": 2}, Grid(8, 8), 0.3),
]


@pytest.mark.parametrize(("name", "options", "grid", "ratio"), EVEN)
def test_every_patch_is_hidden_equally_often_in_100_000_masks(
    name: str, options: dict[str, Any], grid: Grid, ratio: float
) -> None:
    """Chi-square with a covariance: the patches of one mask are not independent of each other."""
    images, parts = 100_000, 20
    sampler: MaskSampler = CATALOG.build("mask", name, options)
    hidden = []
    for part in range(parts):
        positions = torch.arange(images // parts) + part * (images // parts)
        pixels = torch.zeros(1, 1, 1, 1).expand(len(positions), 1, grid.rows, grid.cols)
        hidden.append(Mask.from_scores(sampler.scores(pixels, grid, Rng(23, positions)), ratio).as_map())
    maps = torch.cat(hidden).float()
    share = 1 - int(grid.size * (1 - ratio)) / grid.size
    off = (maps.mean(0) - share).double()  # [N]
    covariance = torch.cov(maps.T).double() / images
    # The count is exact, and masks of whole cells have fewer freedoms still: the pseudo-inverse counts them.
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values.max() * 1e-6
    statistic = float(((vectors[:, kept].T @ off).square() / values[kept]).sum())
    assert chi2.sf(statistic, int(kept.sum())) > 1e-4
    outside = (vectors[:, ~kept].T @ off).abs()
    assert float(outside.max() if len(outside) else 0.0) < 1e-3  # what cannot vary is right as it is


def test_grid_block_hides_whole_cells() -> None:
    hidden = hidden_maps("grid-block", 50, 0.75, Grid(16, 16))
    cells = hidden.view(50, 4, 4, 4, 4).float().mean((2, 4))  # [images, 4, 4]
    assert set(cells.unique().tolist()) == {0.0, 1.0}
    assert len(cells.flatten(1).unique(dim=0)) > 40  # not always the same ones
    partly = hidden_maps("grid-block", 50, 0.7, Grid(16, 16)).view(50, 4, 4, 4, 4).float().mean((2, 4))
    assert ((partly > 0) & (partly < 1)).flatten(1).sum(1).tolist() == [1] * 50


def test_grid_block_is_shifted_where_cells_do_not_divide_the_grid() -> None:
    hidden = hidden_maps("grid-block", 200, 0.5, Grid(14, 14), side=4)
    assert len({tuple(row.nonzero().flatten().tolist()) for row in hidden[:, 0]}) > 20
    together = (hidden[:, 1:].float() * hidden[:, :-1].float()).mean() / hidden.float().mean()
    assert together > 0.75


def test_a_checkerboard_is_one_at_one_half() -> None:
    board = (torch.arange(14)[:, None] + torch.arange(14)) % 2 == 0
    hidden = hidden_maps("checkerboard", 40, 0.5)
    assert all(torch.equal(one, board) or torch.equal(one, ~board) for one in hidden)
    assert {bool(one[0, 0]) for one in hidden} == {True, False}
    low, high = hidden_maps("checkerboard", 40, 0.3), hidden_maps("checkerboard", 40, 0.7)
    assert all(not (one & board).any() or not (one & ~board).any() for one in low)
    assert all((one | board).all() or (one | ~board).all() for one in high)


def test_squares_of_a_checkerboard_may_be_larger() -> None:
    hidden = hidden_maps("checkerboard", 3, 0.5, Grid(8, 8), side=2)
    squares = hidden.view(3, 4, 2, 4, 2).float().mean((2, 4))
    assert set(squares.unique().tolist()) == {0.0, 1.0}
    assert (squares.view(3, 4, 4)[:, 0, 0] != squares.view(3, 4, 4)[:, 0, 1]).all()


@pytest.mark.parametrize("name", ["grid-block", "checkerboard"])
def test_a_side_below_one_is_refused(name: str) -> None:
    with pytest.raises(PluginError, match="refuses its options: side must be at least 1"):
        CATALOG.build("mask", name, {"side": 0})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CATALOG.names("mask"))
def test_a_cuda_device_draws_the_same_masks(name: str) -> None:
    sampler: MaskSampler = CATALOG.build("mask", name, {})
    pixels, positions = torch.zeros(512, 3, 14, 14), torch.arange(512)
    here = sampler.scores(pixels, GRID, Rng(5, positions))
    there = sampler.scores(pixels.cuda(), GRID, Rng(5, positions.cuda()))
    assert torch.equal(Mask.from_scores(here, 0.75).order, Mask.from_scores(there, 0.75).order.cpu())


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
