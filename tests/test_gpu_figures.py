"""What measures a GPU is rehearsed without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_step_beyond_the_budget_is_named_and_nothing_is_taken_for_a_gpu(tmp_path: Path) -> None:
    own = {"PYTHON": sys.executable, "WHEELS": str(tmp_path / "none"), "BUDGET": "1", "TMPDIR": str(tmp_path)}
    command = [str(ROOT / "tools/gpu_figures.sh"), "--rehearse"]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "step-base (skipped)" in done.stderr
    (written,) = tmp_path.glob("*/*.json")
    found = json.loads(written.read_text())
    assert found["about"] == "rehearsal on a CPU: no figure of a GPU"
    assert found["steps"]["machine"]["code"] == "0"
    assert found["about"] in written.with_suffix(".md").read_text()
