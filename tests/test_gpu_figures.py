"""What measures a GPU is rehearsed without one, and says what it has not measured."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.test_parity import GOLDEN
from tools import gpu_correct, gpu_report

ROOT = Path(__file__).parent.parent


def called(*command: str, **own: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", **own}
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)


def test_steps_beyond_the_budget_are_cut_or_named_and_nothing_is_taken_for_a_gpu(tmp_path: Path) -> None:
    own = {"PYTHON": sys.executable, "WHEELS": str(tmp_path / "none"), "BUDGET": "1", "TMPDIR": str(tmp_path)}
    done = called(str(ROOT / "tools/gpu_figures.sh"), "--rehearse", **own)
    assert done.returncode == 1
    assert "step-tiny (no time left)" in done.stderr
    (written,) = tmp_path.glob("*/*.json")
    found = json.loads(written.read_text())
    assert found["about"] == "rehearsal on a CPU: no figure of a GPU"
    outcomes = {name: step["outcome"] for name, step in found["steps"].items()}
    assert outcomes.pop("machine") in ("too long", "no time left")  # to import torch takes longer than it is given
    assert outcomes.pop("driver") == "cannot be rehearsed without a GPU"
    assert set(outcomes.values()) == {"no time left"}
    assert found["about"] in written.with_suffix(".md").read_text()


@pytest.mark.slow  # it runs pytest three times
def test_a_step_whose_tests_were_all_skipped_has_run_nothing(tmp_path: Path) -> None:
    steps = ["broken 3 1"]
    for name, words in {"skipped": "on_a_gpu", "passed": "on_a_cpu", "deselected": "no_such"}.items():
        done = called(
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_device.py", "-k", words
        )
        (tmp_path / f"{name}.log").write_text(done.stdout)
        steps.append(f"{name} {done.returncode} 1")
    (tmp_path / "steps").write_text("\n".join(steps))
    said = called(sys.executable, "tools/gpu_report.py", str(tmp_path), str(tmp_path), "--device", "cpu")
    found = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert {name: step["outcome"] for name, step in found["steps"].items()} == {
        "skipped": "nothing run",
        "passed": "done",
        "deselected": "nothing run",
        "broken": "failed, exit code 3",
    }
    assert said.returncode == 1
    assert "broken (failed, exit code 3)" in said.stderr


def test_a_device_that_is_right_passes_and_says_every_figure(tmp_path: Path) -> None:
    out = tmp_path / "correct.json"
    checks = ("masks", "attention", "resume")
    done = called(sys.executable, "-m", "tools.gpu_correct", "--device", "cpu", "--json", str(out), "--only", *checks)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert len(found) == 6 + 8 + 2
    assert all(each["holds"] and each["figure"] <= each["most"] for each in found)


def test_what_is_wrong_or_breaks_is_named_and_ends_no_other_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(device: torch.device) -> Iterator[gpu_correct.Figure]:
        yield "losses", gpu_correct.apart([1.0, 2.2], [1.0, 2.0]), 0.05
        yield "not finite", gpu_correct.apart([math.nan], [1.0]), 1.0
        raise RuntimeError("no kernel image\nfor this device")

    def right(device: torch.device) -> Iterator[gpu_correct.Figure]:
        yield "equal", gpu_correct.distance(torch.ones(2), torch.ones(2)), 0.0

    monkeypatch.setattr(gpu_correct, "CHECKS", {"wrong": wrong, "right": right})
    found = gpu_correct.run(["wrong", "right"], torch.device("cpu"))
    assert [(each["name"], each["holds"]) for each in found] == [
        ("losses", False),
        ("not finite", False),
        ("wrong: RuntimeError: no kernel image", False),
        ("equal", True),
    ]
    page = gpu_report.page("x", {"steps": {}, "runs": {}, "correct": found})
    assert "| losses | 0.1 | 0.05 | NO |" in page


def test_the_official_losses_are_those_of_the_golden_values() -> None:
    if not GOLDEN.is_file():
        pytest.skip(f"the golden values are not at {GOLDEN}")
    golden = json.loads(GOLDEN.read_text())
    names = ("pretrain_tiny_r75_pix", "pretrain_tiny_r50_norm", "pretrain_vit_base_pix")
    expected = [[golden[name][key] for key in ("batch", "mask_ratio", "norm_pix", "loss")] for name in names]
    assert [[images, *rest] for images, _, *rest in gpu_correct.OFFICIAL.values()] == expected
