"""Random numbers are functions of (seed, purpose, position)."""

from __future__ import annotations

import numpy as np
import torch

from mae_pipe.rng import Rng
from mae_pipe.seeding import hashes, key, permutation, uniforms


def test_the_numbers_never_change_between_versions() -> None:
    # Pinned: a changed hash would change the order, the crops and the masks of every old run.
    assert key(0, "order/0") == 6942163024847554866
    assert permutation(key(0, "order/0"), 10).tolist() == [6, 5, 2, 9, 1, 7, 3, 4, 8, 0]


def test_tensors_and_arrays_draw_the_same_bits() -> None:
    positions = np.array([0, 1, 7, 10**12])
    k = key(3, "mask")
    drawn = Rng(k, torch.from_numpy(positions)).bits(5)
    assert np.array_equal(drawn.numpy().view(np.uint64), hashes(k, positions, 5))


def test_an_image_draws_the_same_in_any_batch() -> None:
    k = key(0, "mask")
    whole = Rng(k, torch.arange(8)).uniform(4, 3)
    part = Rng(k, torch.arange(5, 8)).uniform(4, 3)
    assert torch.equal(whole[5:], part)


def test_two_draws_go_on_where_the_first_ended() -> None:
    k, positions = key(0, "mask"), torch.arange(3)
    rng = Rng(k, positions)
    assert torch.equal(torch.cat([rng.uniform(2), rng.uniform(3)], dim=1), Rng(k, positions).uniform(5))


def test_uniform_normal_and_integers_have_their_moments() -> None:
    rng = Rng(key(1, "test"), torch.arange(2000))
    u, z, i = rng.uniform(200), rng.normal(200), rng.integers(7, 200)
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert abs(float(u.mean()) - 0.5) < 0.003
    assert abs(float(u.var()) - 1 / 12) < 0.001
    assert abs(float(z.mean())) < 0.01
    assert abs(float(z.var()) - 1) < 0.02
    assert torch.bincount(i.flatten(), minlength=7).float().div(i.numel()).sub(1 / 7).abs().max() < 0.003


def test_neighbouring_positions_and_purposes_are_uncorrelated() -> None:
    positions = np.arange(20_000)
    a, b = (uniforms(key(0, purpose), positions, 2) for purpose in ("crop", "flip"))
    columns = np.column_stack([a[:-1], a[1:], b[:-1]])
    correlation = np.corrcoef(columns.T) - np.eye(6)
    assert np.abs(correlation).max() < 0.03
