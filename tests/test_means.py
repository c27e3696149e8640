"""Measures are means over every image, once, whoever counts."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mae_pipe import means as module
from mae_pipe.data.batch import Batch
from mae_pipe.data.order import Share
from mae_pipe.errors import PluginError
from mae_pipe.means import agree_on_buffers, evaluate

IMAGES = 23
VALUES = np.random.default_rng(0).lognormal(size=IMAGES).astype(np.float32)
HITS = np.random.default_rng(1).integers(0, 2, IMAGES).astype(np.float32)


class Numbered:
    """A source whose image number n is n; padding is filled with what would spoil any mean."""

    images = IMAGES

    def __init__(self, share: Share) -> None:
        self.share = share

    def once(self) -> Iterator[Batch]:
        for start in range(0, IMAGES, self.share.advance):
            places = torch.from_numpy(self.share.positions(start))
            numbers = torch.where(places < IMAGES, places, -1)
            yield Batch(torch.zeros(len(places), 3, 1, 1, dtype=torch.uint8), numbers.clone(), numbers, places)


class Model:
    device = torch.device("cpu")
    training = True

    def train(self, mode: bool = True) -> None:
        self.training = mode

    def __call__(self, batch: Batch, *, mode: str) -> dict[str, Tensor]:
        assert mode == "metrics"
        assert not self.training
        assert not torch.is_grad_enabled()
        real = batch.numbers >= 0
        at = batch.numbers.clamp(min=0)
        values = torch.where(real, torch.from_numpy(VALUES)[at], torch.nan)
        return {"loss": values, "top1": torch.where(real, torch.from_numpy(HITS)[at], 1e9)}


class Ranks:
    """torch.distributed for one process that plays every rank in turn: first all put in, then all get the sum."""

    def __init__(self, world: int) -> None:
        self.world, self.given = world, False
        self.sums: list[Tensor] = []

    def is_initialized(self) -> bool:
        return True

    def get_world_size(self) -> int:
        return self.world

    def all_reduce(self, tensor: Tensor) -> None:
        if not self.given:
            self.sums.append(tensor.clone())
            raise InterruptedError
        tensor.copy_(torch.stack(self.sums).sum(0))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("micro", [1, 4, 7, 64])
def test_the_mean_is_a_direct_count_on_any_number_of_ranks(
    world: int, micro: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = Ranks(world)
    if world > 1:
        monkeypatch.setattr(module, "dist", ranks)
    for rank in range(world if world > 1 else 0):
        with pytest.raises(InterruptedError):
            evaluate(Model(), Numbered(Share(rank, world, micro)))
    ranks.given = True
    results = [evaluate(Model(), Numbered(Share(rank, world, micro))) for rank in range(world)]
    assert all(result == results[0] for result in results)
    assert results[0]["top1"] == HITS.sum() / IMAGES
    assert results[0]["loss"] == pytest.approx(math.fsum(map(float, VALUES)) / IMAGES, rel=1e-14)


def test_the_model_trains_on_afterwards() -> None:
    model = Model()
    evaluate(model, Numbered(Share(micro_batch=4)))
    assert model.training


def test_a_metric_that_is_not_one_number_an_image_is_refused() -> None:
    class Reduced(Model):
        def __call__(self, batch: Batch, *, mode: str) -> dict[str, Tensor]:
            return {"loss": super().__call__(batch, mode=mode)["loss"].mean()}

    with pytest.raises(PluginError, match=r"metric 'loss' has shape \[\]; expected \[4\]"):
        evaluate(Reduced(), Numbered(Share(micro_batch=4)))


def test_an_image_that_was_left_out_is_noticed() -> None:
    class Short(Numbered):
        images = IMAGES + 1

    with pytest.raises(RuntimeError, match="23 of 24"):
        evaluate(Model(), Short(Share(micro_batch=4)))


def test_ranks_measure_with_the_mean_of_their_running_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(Ranks):
        def all_reduce(self, tensor: Tensor) -> None:
            tensor += 3.0  # what the other rank holds

    monkeypatch.setattr(module, "dist", Other(2))
    norm = nn.BatchNorm1d(2)
    agree_on_buffers(norm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.running_mean.tolist() == [1.5, 1.5]
    assert norm.running_var.tolist() == [2.0, 2.0]
    assert norm.num_batches_tracked == 0
