"""A shard that is damaged while two ranks train on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from mae_pipe.catalog import Catalog
from mae_pipe.sharding import build

ROOT = Path(__file__).parents[1]


def test_all_ranks_end_in_seconds_and_the_image_is_named(image_folder: Path, tmp_path: Path) -> None:
    build(image_folder, tmp_path / "shards", catalog=Catalog(), workers=1, per_shard=7)
    command = [sys.executable, "-m", "tests.workers.damaged", str(tmp_path / "shards"), str(tmp_path / "run")]
    environment = {**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"}  # as the command line sets it
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    codes, seconds = json.loads(done.stdout.splitlines()[-1])
    assert codes == [4, 4]
    assert seconds < 60  # a collective's own time-out is 600
    said = [line for line in done.stderr.splitlines() if line.startswith("mae-pipe: ")]
    assert any("train-000001.tar: the image " in line and line.count("is damaged; run: ") for line in said)
    assert len(said) <= 2  # of the rank that met it, and of the other one
    assert "Traceback" not in done.stderr
