"""Position tables of another size are the official code's."""

from __future__ import annotations

import math
from typing import Literal, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from mae_pipe.autoencoder import build_encoder
from mae_pipe.contracts import Grid
from mae_pipe.positions import resized, sincos_positions
from mae_pipe.recipe import EncoderShape

Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]


def along_an_axis(old: int, new: int) -> Matrix:
    """[new, old] float64: Keys' cubic kernel, a = -0.75, between centres; edges are repeated; never widened."""

    def kernel(distance: float) -> float:
        x, a = abs(distance), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    weights = np.zeros((new, old))
    for row in range(new):
        place = (row + 0.5) * old / new - 0.5
        for source in range(math.floor(place) - 1, math.floor(place) + 3):
            weights[row, min(max(source, 0), old - 1)] += kernel(place - source)
    return weights


def by_formula(table: Tensor, old: Grid, new: Grid) -> Matrix:
    """[N, D] float64 of the patches."""
    maps = table[0, -old.size :].double().numpy().reshape(old.rows, old.cols, -1)
    found = np.einsum("ri,cj,ijd->rcd", along_an_axis(old.rows, new.rows), along_an_axis(old.cols, new.cols), maps)
    return cast(Matrix, found.reshape(new.size, -1))


@pytest.mark.parametrize(
    ("old", "new"), [((14, 14), (28, 28)), ((14, 14), (7, 7)), ((14, 14), (32, 32)), ((4, 7), (7, 4)), ((6, 3), (5, 8))]
)
def test_a_table_of_another_size_is_the_bicubic_formula(old: tuple[int, int], new: tuple[int, int]) -> None:
    before, after = Grid(*old), Grid(*new)
    table = sincos_positions(32, *old, first=2)
    table[:, :2] = torch.randn(1, 2, 32, generator=torch.Generator().manual_seed(0))
    found = resized(table, before, after)
    assert torch.equal(found[:, :2], table[:, :2])
    assert found[0, 2:].numpy() == pytest.approx(by_formula(table, before, after), abs=2e-6)


def test_a_larger_table_says_the_same_places() -> None:
    """Numbers of ViT-B's table, 14 x 14 -> 28 x 28: a patch's middle lies between the centres of its four parts."""
    table = resized(sincos_positions(768, 14, 14), Grid(14, 14), Grid(28, 28))[0, 1:].reshape(28, 28, 768)
    official = sincos_positions(768, 14, 14)[0, 1:].reshape(14, 14, 768)
    parts = table[8:10, 8:10].mean(dim=(0, 1))
    assert torch.allclose(parts, official[4, 4], atol=0.05)
    assert not torch.allclose(parts, official[4, 5], atol=0.05)


@pytest.mark.parametrize("learned", [False, True])
def test_images_of_another_size_get_the_table_of_their_grid(learned: bool) -> None:
    """As an encoder of that size with the interpolated table; what has the usual size is computed as before."""
    torch.manual_seed(0)
    shape = EncoderShape(width=32, depth=2, heads=2, patch=(4, 8), class_tokens=2)
    positions: Literal["learned", "fixed"] = "learned" if learned else "fixed"
    encoder = build_encoder(shape, (24, 32), positions=positions)
    small = build_encoder(shape, (12, 40), positions=positions)
    given = encoder.state_dict()
    small.load_state_dict(given | {"pos_embed": resized(given["pos_embed"], Grid(6, 4), Grid(3, 5))})
    images = torch.randn(2, 3, 12, 40)
    assert torch.allclose(encoder(images), small(images), atol=1e-5)
    assert torch.allclose(encoder.after_blocks(images, (0, 1)), small.after_blocks(images, (0, 1)), atol=1e-5)
    encoder(images).square().sum().backward()
    assert (encoder.pos_embed.grad is not None) == learned
    with pytest.raises(ValueError, match="do not split into patches of 4 x 8"):
        encoder(torch.randn(1, 3, 24, 30))
