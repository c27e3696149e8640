"""A checkpoint of any ranks, ZeRO stage and precision is gone on with by any other, to the last bit."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from mae_pipe.catalog import Catalog
from mae_pipe.sharding import build
from tests.nursing import call
from tests.workers import elastic, journey

OFFLOAD = "1.3.fp32.offload_optimizer=cpu.offload_parameters=cpu"
QUICK = ("1.1.fp32", "2.2.bf16", "3.3.fp32", OFFLOAD)
KERNELS = ("2.2.bf16.offload_optimizer=cpu.optimizer=cpu_adam", "1.1.fp32.optimizer=fused_adam")
ALL = (*(".".join(map(str, one)) for one in product((1, 2, 3), (1, 2, 3), ("fp32", "bf16"))), OFFLOAD, *KERNELS)


@pytest.mark.parametrize(
    "settings", [QUICK, pytest.param(ALL, marks=[pytest.mark.slow, pytest.mark.timeout(1600)])], ids=["quick", "all"]
)
def test_every_setting_goes_on_from_every_other(tmp_path: Path, settings: tuple[str, ...]) -> None:
    call(elastic, tmp_path, *settings, seconds=1500)
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["other"]) == len(settings) ** 2
    assert {pair: other for pair, other in found["other"].items() if other} == {}  # weights and AdamW's numbers
    losses = found["losses"]
    for mine, other in product(settings, settings):
        gone_on, uninterrupted = losses[f"{other}-to-{mine}"], losses[other]
        if mine == other:
            assert gone_on == uninterrupted, mine
        same_precision = "fp32" in mine and "fp32" in other
        assert gone_on[0] == pytest.approx(uninterrupted[0], rel=1e-6 if same_precision else 5e-3), (other, mine)
        assert gone_on[1] == pytest.approx(uninterrupted[1], rel=1e-5 if same_precision else 5e-3), (other, mine)


def steps(logs: Path) -> dict[int, dict[str, Any]]:
    """Of every global step: the images at its positions, in order, and the mean loss."""
    rows = [json.loads(line) for log in sorted(logs.iterdir()) for line in log.read_text().splitlines()]
    found: dict[int, dict[str, Any]] = {}
    for step in sorted({row["step"] for row in rows}):
        mine = [row for row in rows if row["step"] == step]
        pairs = sorted((p, n) for row in mine for p, n in zip(row["positions"], row["numbers"], strict=True))
        found[step] = {"images": pairs, "loss": sum(row["loss"] for row in mine) / len(mine)}
    return found


def test_a_run_goes_on_while_ranks_and_stages_change(image_folder: Path, tmp_path: Path) -> None:
    build(image_folder, tmp_path / "shards", catalog=Catalog(), workers=1, per_shard=7)
    call(journey, tmp_path / "shards", tmp_path / "straight", tmp_path / "one", "2.1.12")
    _, said = call(
        journey, tmp_path / "shards", tmp_path / "changing", tmp_path / "many", "2.1.3", "1.3.6", "3.2.9", "2.2.12"
    )
    straight, changing = steps(tmp_path / "one"), steps(tmp_path / "many")
    assert list(straight) == list(changing) == list(range(journey.STEPS))
    for step in straight:
        assert len(straight[step]["images"]) == 24
        assert changing[step]["images"] == straight[step]["images"]
        assert changing[step]["loss"] == pytest.approx(straight[step]["loss"], rel=1e-6 if step in (3, 6, 9) else 1e-5)
    assert straight[11]["loss"] < straight[0]["loss"]
    assert "is of 2 processes, ZeRO 1, fp32; going on with 1 processes, ZeRO 3, fp32" in said
    record = json.loads((tmp_path / "changing" / "run.json").read_text())
    assert [(leg["world"], leg["engine"]["zero"]) for leg in record["gone_on"]] == [(1, 3), (3, 2), (2, 2)]
