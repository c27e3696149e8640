"""A shard that is damaged while two ranks train on it."""

from __future__ import annotations

import json
from pathlib import Path

from mae_pipe.catalog import Catalog
from mae_pipe.sharding import build
from tests.nursing import call
from tests.workers import damaged


def test_all_ranks_end_in_seconds_and_the_image_is_named(image_folder: Path, tmp_path: Path) -> None:
    build(image_folder, tmp_path / "shards", catalog=Catalog(), workers=1, per_shard=7)
    out, err = call(damaged, tmp_path / "shards", tmp_path / "run", seconds=150)
    codes, seconds = json.loads(out.splitlines()[-1])
    assert codes == [4, 4]
    assert seconds < 60  # a collective's own time-out is 600
    said = [line for line in err.splitlines() if line.startswith("mae-pipe: ")]
    assert any("train-000001.tar: the image " in line and line.count("is damaged; run: ") for line in said)
    assert len(said) <= 2  # of the rank that met it, and of the other one
    assert "Traceback" not in err
