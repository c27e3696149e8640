"""Batch norm over all ranks is batch norm of all their rows, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mae_pipe.errors import RecipeError
from mae_pipe.synced import SyncedBatchNorm, of_all_ranks
from tests.nursing import call
from tests.workers import synced


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """ "World.rank" -> what it found."""
    out = tmp_path_factory.mktemp("synced")
    call(synced, out)
    return {path.name: torch.load(path, weights_only=True) for path in out.iterdir()}


def joined(found: dict[str, dict[str, Tensor]], name: str) -> Tensor:
    """Rows of both ranks."""
    return torch.cat([found["2.0"][name], found["2.1"][name]])


def test_two_ranks_of_half_the_rows_are_torchs_batch_norm_of_all(found: dict[str, dict[str, Tensor]]) -> None:
    expected = synced.found_by(nn.BatchNorm1d(synced.WIDTH), slice(None), 1)
    assert set(found) == {"1.0", "2.0", "2.1"}
    for name, wanted in expected.items():
        both = joined(found, name) if name in ("out", "rows", "evaluated") else found["2.0"][name]
        for mine in (found["1.0"][name], both):
            assert torch.allclose(mine, wanted, rtol=1e-6, atol=1e-6), name


def test_the_state_is_the_same_on_both_ranks_to_the_last_bit(found: dict[str, dict[str, Tensor]]) -> None:
    for name in nn.BatchNorm1d(1).state_dict():
        assert torch.equal(found["2.0"][name], found["2.1"][name]), name


def test_every_rank_gets_all_rows_and_knows_its_own(found: dict[str, dict[str, Tensor]]) -> None:
    for name, first in (("1.0", 0), ("2.0", 0), ("2.1", synced.ROWS // 2)):
        assert torch.equal(found[name]["shared"], synced.rows()[0])
        assert int(found[name]["first"]) == first
    alone = torch.ones(2, 3, requires_grad=True)
    assert not of_all_ranks(alone)[0].requires_grad


def test_in_another_precision_statistics_stay_float32() -> None:
    rows = synced.rows()[0].bfloat16()
    norm, wanted = SyncedBatchNorm(synced.WIDTH).bfloat16(), nn.BatchNorm1d(synced.WIDTH)
    assert norm.weight.dtype == norm(rows).dtype == torch.bfloat16
    wanted(rows.float())
    assert norm.running_mean.dtype == torch.float32
    torch.testing.assert_close(norm.running_mean, wanted.running_mean)
    torch.testing.assert_close(norm.running_var, wanted.running_var)


def test_a_row_that_is_not_finite_does_not_stay_in_the_statistics() -> None:
    norm = SyncedBatchNorm(2, affine=False)
    norm(torch.tensor([[torch.inf, 1.0], [0.0, 3.0]]))
    assert norm.running_mean.tolist() == [0.0, pytest.approx(0.2)]
    assert norm.running_var.tolist() == [1.0, pytest.approx(1.1)]


def test_one_row_is_refused_in_words() -> None:
    with pytest.raises(RecipeError, match=r"two images or more at once.*raise data\.micro_batch"):
        SyncedBatchNorm(2)(torch.ones(1, 2))
