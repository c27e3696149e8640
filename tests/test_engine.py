"""Whatever a recipe says of its engine, any number of ranks compute what plain torch computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mae_pipe.spawning import Job, spawn
from tests.by_hand import steps
from tests.nursing import call
from tests.workers import stages

TOLERANCE = 1e-5
# In half precision: of float32 weights that are nudged by half of their last bit before each step, losses move by up to
# 1.5e-4, and the median of weights by 6e-4 of its way in bfloat16, by 3e-4 in float16.
HALF, HALF_LOSS = 1e-3, 3e-4
STAGES = (1, 2, 3)


def trained(
    tmp_path: Path, processes: int, choices: dict[str, dict[str, Any]]
) -> dict[str, tuple[list[float], dict[str, torch.Tensor]]]:
    """Losses and float32 weights of each engine."""
    out = tmp_path / f"{processes}.pt"
    call(stages, out, json.dumps(choices), ranks=processes, seconds=1800)
    return torch.load(out, weights_only=True)


def run(tmp_path: Path, processes: int, choices: dict[str, dict[str, Any]]) -> dict[str, list[float]]:
    return {name: losses for name, (losses, _) in trained(tmp_path, processes, choices).items()}


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
    "DeepSpeed's own table": {
        "zero": 2,
        "deepspeed": {"zero_optimization": {"use_multi_rank_bucket_allreduce": False}},
    },
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
    expected = steps()
    found = trained(tmp_path, processes, {name: FLOAT32[name] for name in names})
    assert len(expected.losses) == 8
    assert expected.losses[-1] < expected.losses[0]  # something was learnt, so a lost gradient would show
    assert set(found) == set(names)
    for name, (losses, weights) in found.items():
        assert losses == pytest.approx(expected.losses, rel=TOLERANCE), f"{name}, {processes} processes"
        assert expected.off(weights) < TOLERANCE, f"{name}, {processes} processes"


@pytest.mark.parametrize("processes", ONE_TOO)
def test_half_precision_keeps_float32_weights_and_sums(
    tmp_path: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}
    choices = at_every_stage("bf16", precision="bf16") | at_every_stage("fp16", precision="fp16", initial_scale=8)
    for name, (losses, weights) in trained(tmp_path, processes, choices).items():
        with monkeypatch.context() as patch:
            if "ZeRO 3" in name:  # rounds a product before it adds a bias
                patch.setattr(torch.nn.functional, "linear", lambda x, weight, bias: x.matmul(weight.t()) + bias)
            expected = steps(half[name[:4]], scale=2**8)
        assert losses == pytest.approx(expected.losses, rel=HALF_LOSS), f"{name}, {processes} processes"
        assert expected.off(weights) < HALF, f"{name}, {processes} processes"


def test_weights_tell_what_losses_cannot() -> None:
    for dtype, lost in ((torch.bfloat16, 40), (torch.float16, 5)):
        right = steps(dtype, scale=2**8)
        assert right.off(right.end) == 0
        assert right.off(steps(dtype, scale=2**8, weights_in=dtype).end) > lost * HALF
    right = steps(torch.bfloat16)
    rounded = steps(torch.bfloat16, sums_in=torch.bfloat16)
    assert right.off(rounded.end) > 2 * HALF
    assert rounded.losses == pytest.approx(right.losses, rel=HALF_LOSS)


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
    expected = steps().losses
    for name, losses in run(tmp_path, 2, choices).items():
        assert losses == pytest.approx(expected, rel=TOLERANCE), name


def test_a_failed_process_gives_its_exit_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["pretrain", "digits", "--shards", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run")]
    assert spawn(Job(2), arguments) == 4
    said = capfd.readouterr().err
    assert "manifest.json" in said
    assert "Traceback" not in said
