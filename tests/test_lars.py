"""LARS and SGD take the official steps, on whole tensors and on what ZeRO makes of them, and go on from checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mae_pipe.checkpoints import Archive
from mae_pipe.engine.lars import Lars, each_alone
from mae_pipe.recipe import Optimizer
from tests.by_hand import steps
from tests.nursing import call
from tests.test_engine import HALF, HALF_LOSS, TOLERANCE, trained
from tests.workers import elastic

# Official util/lars.py with lr 0.3, weight decay 0.01, momentum 0.9, trust 0.001: of w [7, 5] and b [7] from seeds 5
# and 6, with gradients from seeds 50 + step and 60 + step, after each step: sum of w, norm of w, sum of b.
OFFICIAL = [
    [-0.8669702496845275, 5.3035810174294316, -0.25255775451660156],
    [-0.8689271642360836, 5.303360077992916, -0.108314273878932],
    [-0.8715982753783464, 5.303322921792504, 0.549233078956604],
    [-0.8742958388756961, 5.303436839556313, 1.902596116065979],
    [-0.8733955537900329, 5.303106938556977, 4.11378812789917],
]


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def test_lars_takes_the_official_steps() -> None:
    matrix, vector = torch.nn.Parameter(drawn(5, 7, 5)), torch.nn.Parameter(drawn(6, 7))
    groups = each_alone([{"params": [matrix, vector], "weight_decay": 0.01}])
    optimizer = Lars(groups, lr=0.3, momentum=0.9, trust=0.001)
    for step, expected in enumerate(OFFICIAL):
        matrix.grad, vector.grad = drawn(50 + step, 7, 5), drawn(60 + step, 7)
        optimizer.step()
        found = [matrix.sum().item(), matrix.norm().item(), vector.sum().item()]
        assert found == pytest.approx(expected, rel=0, abs=1e-5), step


def test_padding_does_not_count() -> None:
    whole, groups = torch.nn.Parameter(drawn(5, 7, 5)), []
    padded = torch.nn.Parameter(torch.cat([drawn(5, 35), torch.full((5,), torch.nan)]))
    for weights in (whole, padded):
        groups += each_alone([{"params": [whole], "weight_decay": 0.01}])
        groups[-1]["params"] = [weights]
        weights.grad = torch.cat([drawn(50, 35), torch.full((5,), torch.inf)])[: weights.numel()].view_as(weights)
    Lars(groups, lr=0.3, momentum=0.9, trust=0.001).step()
    assert torch.equal(padded[:35].view(7, 5), whole)


def test_a_tensor_without_a_norm_is_not_scaled() -> None:
    zero = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = Lars(each_alone([{"params": [zero]}]), lr=1.0, momentum=0.0, trust=0.001)
    zero.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(zero, torch.full((2, 2), -1.0))
    zero.grad = torch.zeros(2, 2)
    optimizer.step()
    assert torch.equal(zero, torch.full((2, 2), -1.0))


class ByHand(torch.optim.Optimizer):
    """The rule, tensor by tensor, in float64."""

    def __init__(self, groups: list[dict[str, Any]], numbers: Optimizer) -> None:
        super().__init__(groups, {"lr": 0.0})
        self.numbers = numbers

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                update, weights = p.grad.double(), p.double()
                if p.ndim > 1:
                    update = update + group["weight_decay"] * weights
                    if weights.any() and update.any():
                        update = update * self.numbers.trust * weights.norm() / update.norm()
                momentum = self.state[p]["momentum"] = self.state[p].get("momentum", 0) * self.numbers.momentum + update
                p.copy_(weights - group["lr"] * momentum)


def sgd(groups: list[dict[str, Any]], numbers: Optimizer) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.0, momentum=numbers.momentum)


WAYS: dict[str, dict[str, Any]] = {
    "ZeRO 1": {"zero": 1},
    "ZeRO 2": {"zero": 2},
    "on the CPU": {"zero": 2, "offload_optimizer": "cpu"},
    "no process holds the model": {"zero": 3, "sharded_construction": True},
}


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_every_engine_takes_the_same_steps(tmp_path: Path, processes: int) -> None:
    expected = {
        "lars": steps(name="lars", optimizer_of=ByHand),
        "lars in bf16": steps(torch.bfloat16, name="lars", optimizer_of=ByHand),
        "sgd": steps(name="sgd", optimizer_of=sgd),
    }
    ways = {f"lars, {way}": {"optimizer": "lars", **choice} for way, choice in WAYS.items()}
    ways["lars in bf16, ZeRO 1"] = {"optimizer": "lars", "precision": "bf16"}
    ways["sgd, ZeRO 1"] = {"optimizer": "sgd"}
    for way, (losses, weights) in trained(tmp_path, processes, ways).items():
        wanted = expected[way.partition(",")[0]]
        half = "bf16" in way
        assert wanted.losses[-1] < wanted.losses[0] - 0.01
        assert losses == pytest.approx(wanted.losses, rel=HALF_LOSS if half else TOLERANCE), way
        assert wanted.off(weights) < (HALF if half else TOLERANCE), way


@pytest.mark.slow  # tests/test_average.py has a quick one
@pytest.mark.parametrize(("name", "ways"), [("lars", ((1, 1), (3, 1), (2, 3))), ("sgd", ((1, 1), (2, 3)))])
def test_momentum_is_in_a_checkpoint_and_goes_on_anywhere(
    tmp_path: Path, name: str, ways: tuple[tuple[int, int], ...]
) -> None:
    """In three parts most tensors are padded."""
    settings = [f"{world}.{zero}.fp32.optimizer={name}" for world, zero in ways]
    call(elastic, tmp_path, *settings)
    found = json.loads((tmp_path / "found.json").read_text())
    assert {pair: other for pair, other in found["other"].items() if other} == {}
    for mine in settings:
        for other in settings:
            rel = 0 if mine == other else TOLERANCE
            assert found["losses"][f"{other}-to-{mine}"] == pytest.approx(found["losses"][other], rel=rel, abs=0)
            assert found["losses"][mine] == pytest.approx(found["losses"][other], rel=TOLERANCE)
    held = Archive.of(tmp_path / settings[1] / "checkpoints" / f"step-{elastic.BEFORE:07d}")
    assert held.kinds == {"weight", "whole", "momentum_buffer"}
    assert held.whole("momentum_buffer", "encoder.norm.weight").any()
