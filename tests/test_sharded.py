"""A model that no process holds whole begins with the usual weights, learns the same, and takes less memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.nursing import call
from tests.workers import sharded

MIDDLE = {"width": 768, "depth": 12, "heads": 12}  # 85 M parameters


def found(tmp_path: Path, processes: int, **wanted: Any) -> list[dict[str, Any]]:
    """What each rank says."""
    out = tmp_path / "found"
    call(sharded, out, json.dumps(wanted), ranks=processes, seconds=1800)
    return [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(processes)]


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_first_weight_is_the_usual_one_to_the_last_bit(tmp_path: Path, processes: int, precision: str) -> None:
    engine = {"precision": precision, "sharded_construction": True}
    for said in found(tmp_path, processes, weights=True, engine=engine):
        assert sorted(said["same"]) == said["names"]
        assert [name for name, same in said["same"].items() if not same] == []


@pytest.mark.slow
def test_a_rank_of_four_takes_less_memory_than_with_the_whole_model(tmp_path: Path) -> None:
    """The whole model's float32 weights take 340 MB."""
    peaks = [
        max(
            said["peak"]
            for said in found(
                tmp_path, 4, weights=False, encoder=MIDDLE, engine={"precision": "bf16", "sharded_construction": choice}
            )
        )
        for choice in (True, False)
    ]
    assert peaks[0] < peaks[1] - 80e6
