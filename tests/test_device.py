"""Batches come to the device as they were made, in order; on a GPU the next one is copied meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from mae_pipe.data.batch import Batch
from mae_pipe.data.device import placed


def batches(count: int, *, fail: int = -1, pin: bool = False) -> Iterator[Batch]:
    """Of numbers that tell them apart, in memory that each one may have written over when the next is asked for."""
    memory = torch.zeros(2, 4, 3, 64, 64, dtype=torch.uint8, pin_memory=pin)
    for number in range(count):
        if number == fail:
            raise ValueError(f"no batch {number}")
        pixels = memory[number % 2].fill_(number)
        label = torch.full((4,), number)
        yield Batch(pixels, label, label + 1, label + 2)


def test_on_a_cpu_a_batch_is_passed_on_untouched_and_none_is_taken_ahead() -> None:
    taken = []

    def source() -> Iterator[Batch]:
        for batch in batches(3):
            taken.append(batch)
            yield batch

    for count, (here, there) in enumerate(placed(source(), torch.device("cpu"))):
        assert len(taken) == count + 1
        assert here.pixels.data_ptr() == there.pixels.data_ptr() == taken[-1].pixels.data_ptr()


def test_an_error_comes_when_its_batch_is_asked_for() -> None:
    seen = []

    def read() -> None:
        for _, there in placed(batches(5, fail=3), torch.device("cpu")):
            seen.append(int(there.labels[0]))

    with pytest.raises(ValueError, match="no batch 3"):
        read()
    assert seen == [0, 1, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("pin", [True, False])
def test_on_a_gpu_every_batch_is_whole_while_the_next_is_copied(pin: bool) -> None:
    device, sums, seen = torch.device("cuda"), [], []

    def read() -> None:
        work = torch.rand(2048, 2048, device=device)
        for here, there in placed(batches(40, fail=37, pin=pin), device):
            work = work @ work / work.norm()  # so that the copy runs beside something
            sums.append(there.pixels.double().sum())
            seen.append((int(here.labels[0]), there.pixels.device.type))

    with pytest.raises(ValueError, match="no batch 37"):
        read()
    assert seen == [(number, "cuda") for number in range(37)]
    assert [int(total) for total in sums] == [number * 4 * 3 * 64 * 64 for number in range(37)]
