"""A checkpoint of any ranks, ZeRO stage and precision is gone on with by any other, to the last bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from tests.workers import elastic

WORKER = Path(elastic.__file__)
QUICK = ("1.1.fp32", "1.3.bf16", "2.2.fp32", "2.1.bf16", "3.3.fp32", "3.2.bf16")
ALL = tuple(".".join(map(str, one)) for one in product((1, 2, 3), (1, 2, 3), ("fp32", "bf16")))


@pytest.mark.parametrize(
    "settings", [QUICK, pytest.param(ALL, marks=[pytest.mark.slow, pytest.mark.timeout(1600)])], ids=["quick", "all"]
)
def test_every_setting_goes_on_from_every_other(tmp_path: Path, settings: tuple[str, ...]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parents[2])}
    command = [sys.executable, str(WORKER), str(tmp_path), *settings]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["other"]) == len(settings) ** 2
    assert {pair: other for pair, other in found["other"].items() if other} == {}  # weights and AdamW's numbers
    losses = found["losses"]
    for mine, other in product(settings, settings):
        gone_on, uninterrupted = losses[f"{other}-to-{mine}"], losses[other]
        if mine == other:
            assert gone_on == uninterrupted, mine
        same_precision = mine.rpartition(".")[2] == other.rpartition(".")[2] == "fp32"
        assert gone_on[0] == pytest.approx(uninterrupted[0], rel=1e-6 if same_precision else 5e-3), (other, mine)
        assert gone_on[1] == pytest.approx(uninterrupted[1], rel=1e-5 if same_precision else 5e-3), (other, mine)
