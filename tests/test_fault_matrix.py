"""Killed anywhere, also in a save; told to stop; not a number; no space; a bit flipped: a run ends as without it.

Weights, losses and sample ids are compared with those of an uninterrupted run: bit for bit where it goes on with
the same ranks and stage, to 1e-3 elsewhere.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mae_pipe.catalog import Catalog
from mae_pipe.sharding import build
from tests.nursing import call
from tests.workers import faulty


@pytest.mark.parametrize(
    ("cases", "kinds", "expected"),
    [
        (19, ("nan", "disk full", "corrupt"), 3),  # kills and signals: tests of resuming, and of the trainer
        pytest.param(200, (), 200, marks=[pytest.mark.slow, pytest.mark.timeout(4000)]),
    ],
    ids=["quick", "all"],
)
def test_whatever_happens_the_run_ends_as_if_it_had_not(
    cases: int, kinds: tuple[str, ...], expected: int, image_folder: Path, tmp_path: Path
) -> None:
    build(image_folder, tmp_path / "shards", catalog=Catalog(), workers=1, per_shard=7)
    call(faulty, tmp_path / "shards", tmp_path, cases, 0, *kinds, seconds=3900)
    assert json.loads((tmp_path / "found.json").read_text()) == {"cases": expected, "wrong": {}}
