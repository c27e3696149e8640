"""Whatever a recipe says of its engine, any number of ranks compute what plain torch computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mae_pipe.optim import Plan
from mae_pipe.recipe import Optimizer
from mae_pipe.spawning import Job, spawn
from tests.nursing import call
from tests.workers import stages

TOLERANCE = 1e-5
STAGES = (1, 2, 3)


def adamw(groups: list[dict[str, Any]], numbers: Optimizer) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, betas=numbers.betas, eps=numbers.eps)


def plain_torch(
    precision: torch.dtype = torch.float32,
    name: str = "adamw",
    optimizer_of: Callable[[list[dict[str, Any]], Optimizer], torch.optim.Optimizer] = adamw,
) -> list[float]:
    """The same steps by hand, on float32 weights and with float32 sums of micro-batches' gradients."""
    mae = stages.chosen({"optimizer": name})
    plan = Plan.of(mae, stages.IMAGES, 1)
    master = stages.task_of(mae).train().to(precision).float()  # DeepSpeed's master weights begin as rounded ones
    groups = stages.groups_of(master)
    optimizer = optimizer_of(groups, mae.optimizer)
    task = stages.task_of(mae).train()
    losses = []
    for step in range(plan.steps):
        task.load_state_dict(master.state_dict())
        task.to(precision)
        optimizer.zero_grad()
        found = []
        for first in range(step * stages.GLOBAL, (step + 1) * stages.GLOBAL, stages.MICRO):
            loss = task(stages.noise(np.arange(first, first + stages.MICRO)))
            task.zero_grad()
            (loss / plan.accumulation).backward()
            for sum_of, parameter in zip(master.parameters(), task.parameters(), strict=True):
                if parameter.grad is not None:
                    grad = parameter.grad.float()
                    sum_of.grad = grad if sum_of.grad is None else sum_of.grad + grad
            found.append(loss.item())
        torch.nn.utils.clip_grad_norm_(master.parameters(), mae.optimizer.clip)
        for group in optimizer.param_groups:
            group["lr"] = plan.lr(step) * group["lr_scale"]
        optimizer.step()
        losses.append(sum(found) / len(found))
    return losses


def run(tmp_path: Path, processes: int, choices: dict[str, dict[str, Any]]) -> dict[str, list[float]]:
    out = tmp_path / f"{processes}.json"
    call(stages, out, json.dumps(choices), ranks=processes, seconds=1800)
    return json.loads(out.read_text())


def at_every_stage(name: str, **choice: Any) -> dict[str, dict[str, Any]]:
    return {f"{name}, ZeRO {stage}": {"zero": stage, **choice} for stage in STAGES}


FLOAT32 = {
    **at_every_stage("nothing else"),
    **at_every_stage("optimizer on the CPU", offload_optimizer="cpu"),
    "parameters on the CPU": {"zero": 3, "offload_parameters": "cpu"},
    "all on the CPU": {"zero": 3, "offload_parameters": "cpu", "offload_optimizer": "cpu"},
    **at_every_stage("blocks computed again", checkpoint_blocks=2),
    **at_every_stage("small buckets", reduce_bucket=4096),
    "small buckets to gather": {"zero": 2, "gather_bucket": 4096},
    "nothing fetched ahead": {"zero": 3, "prefetch_bucket": 0},
    "sums beside the backward pass, ZeRO 2": {"zero": 2, "overlap_comm": True},
    "sums beside the backward pass, ZeRO 3": {"zero": 3, "overlap_comm": True},
    **at_every_stage("gradients where they are", contiguous_gradients=False),
    "no process holds the model": {"zero": 3, "sharded_construction": True},
    "DeepSpeed's own table": {"zero": 2, "deepspeed": {"zero_optimization": {"round_robin_gradients": True}}},
}


# One of each kind, at the stage where it has most to do.
QUICK = (
    *at_every_stage("nothing else"),
    *at_every_stage("small buckets"),
    "optimizer on the CPU, ZeRO 2",
    "all on the CPU",
    "blocks computed again, ZeRO 3",
    "nothing fetched ahead",
    "sums beside the backward pass, ZeRO 2",
    "gradients where they are, ZeRO 2",
    "no process holds the model",
)
ONE_TOO = [pytest.param(1, marks=pytest.mark.slow), 2]


@pytest.mark.parametrize(
    ("processes", "names"),
    [(2, QUICK), *(pytest.param(processes, tuple(FLOAT32), marks=pytest.mark.slow) for processes in (1, 2))],
    ids=["2 quick", "1", "2"],
)
def test_every_engine_gives_the_losses_of_plain_torch(tmp_path: Path, processes: int, names: tuple[str, ...]) -> None:
    expected = plain_torch()
    found = run(tmp_path, processes, {name: FLOAT32[name] for name in names})
    assert len(expected) == 8
    assert expected[-1] < expected[0]  # something was learnt, so a lost gradient would show
    assert set(found) == set(names)
    for name, losses in found.items():
        assert losses == pytest.approx(expected, rel=TOLERANCE), f"{name}, {processes} processes"


@pytest.mark.parametrize("processes", ONE_TOO)
def test_half_precision_keeps_float32_weights_and_sums(
    tmp_path: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights or sums in bfloat16 would be a thousand times as far off."""
    choices = at_every_stage("bf16", precision="bf16") | at_every_stage("fp16", precision="fp16", initial_scale=8)
    for name, losses in run(tmp_path, processes, choices).items():
        with monkeypatch.context() as patch:
            if "ZeRO 3" in name:  # rounds a product before it adds a bias
                patch.setattr(torch.nn.functional, "linear", lambda x, weight, bias: x.matmul(weight.t()) + bias)
            expected = plain_torch(torch.bfloat16 if "bf16" in name else torch.float16)
        tolerance = TOLERANCE if "bf16" in name else 3e-4  # float16's small gradients are lost without a scale
        assert losses == pytest.approx(expected, rel=tolerance), f"{name}, {processes} processes"


def test_sums_over_ranks_are_in_float32_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    types = ("fp32", "precision")
    ways = [at_every_stage(dtype, precision="bf16", reduce_dtype=dtype) for dtype in types]
    found = run(tmp_path, 2, ways[0] | ways[1])
    for stage in STAGES:
        fine, coarse = (found[f"{dtype}, ZeRO {stage}"] for dtype in types)
        assert fine[:2] == coarse[:2], "before the first update there is no difference"
        assert fine != pytest.approx(coarse, rel=TOLERANCE), stage


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "choices",
    [
        at_every_stage("cpu_adam", optimizer="cpu_adam", offload_optimizer="cpu"),
        at_every_stage("fused_adam", optimizer="fused_adam"),
        {"compiled": {"compile": True}, "compiled, computed again": {"compile": True, "checkpoint_blocks": 2}},
        {"compiled, ZeRO 3": {"zero": 3, "compile": True}},
    ],
    ids=lambda choices: next(iter(choices)).partition(", ZeRO 1")[0],
)
def test_what_a_compiler_makes_gives_the_same_losses(tmp_path: Path, choices: dict[str, dict[str, Any]]) -> None:
    """DeepSpeed's optimizers by a compiler of C++, blocks by PyTorch's."""
    expected = plain_torch()
    for name, losses in run(tmp_path, 2, choices).items():
        assert losses == pytest.approx(expected, rel=TOLERANCE), name


def test_a_failed_process_gives_its_exit_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["pretrain", "digits", "--shards", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run")]
    assert spawn(Job(2), arguments) == 4
    said = capfd.readouterr().err
    assert "manifest.json" in said
    assert "Traceback" not in said
