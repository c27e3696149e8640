"""DeepSpeed's stages on any number of ranks compute what plain torch computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mae_pipe.launch import spawn
from mae_pipe.optim import Plan
from tests.workers import stages

WORKER = Path(stages.__file__)
TOLERANCE = 1e-5


def plain_torch() -> list[float]:
    """The same steps by hand: torch's AdamW, one backward on the whole global batch."""
    mae = stages.chosen(1)
    plan = Plan.of(mae, stages.IMAGES, 1)
    task = stages.task_of(mae).train()
    groups = stages.groups_of(task)
    optimizer = torch.optim.AdamW(groups, betas=mae.optimizer.betas, eps=mae.optimizer.eps)
    losses = []
    for step in range(plan.steps):
        batch = stages.noise(np.arange(step * stages.GLOBAL, (step + 1) * stages.GLOBAL))
        loss = task(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), mae.optimizer.clip)
        for group in optimizer.param_groups:
            group["lr"] = plan.lr(step) * group["lr_scale"]
        optimizer.step()
        losses.append(loss.item())
    return losses


def run(tmp_path: Path, processes: int) -> dict[str, list[float]]:
    out = tmp_path / f"{processes}.json"
    command = [sys.executable, str(WORKER), str(out)]
    if processes > 1:
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    root = WORKER.parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("processes", [1, 2])
def test_every_zero_stage_gives_the_losses_of_plain_torch(tmp_path: Path, processes: int) -> None:
    expected = plain_torch()
    found = run(tmp_path, processes)
    assert len(expected) == 8
    assert expected[-1] < expected[0]  # something was learnt, so a lost gradient would show
    for stage, losses in found.items():
        assert losses == pytest.approx(expected, rel=TOLERANCE), f"stage {stage} on {processes} processes"


def test_a_failed_process_gives_its_exit_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["pretrain", "digits", "--shards", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run")]
    assert spawn(2, arguments) == 4
    said = capfd.readouterr().err
    assert "manifest.json" in said
    assert "Traceback" not in said
