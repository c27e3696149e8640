"""A loss or a gradient that is not finite: what the run does, and what it writes down."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from deepspeed.accelerator import get_accelerator

from mae_pipe.errors import TrainingError
from tests.nursing import call
from tests.workers import nonfinite
from tests.workers.nonfinite import BAD, CASES, STEPS, Poisoned, go
from tests.workers.stages import GLOBAL


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "nonfinite.jsonl").read_text().splitlines()]


def check_row(row: dict[str, Any], how: str, ranks: int) -> None:
    """It is of step 6, and has every image of it once, those of the bad loss by name."""
    parts = row["micro_batches"]
    assert row["step"] == 6
    assert sorted(n for part in parts for n in part["numbers"]) == list(range(5 * GLOBAL, 6 * GLOBAL))
    assert {part["rank"] for part in parts} == set(range(ranks))
    bad = [part for part in parts if isinstance(part["loss"], str)]
    if how == "gradient":
        assert (row["what"], bad) == ("gradient", [])
    else:
        assert [(part["loss"], f"image {BAD}" in part["keys"]) for part in bad] == [(how.split()[-1], True)]
        assert row["what"] == "loss"


@pytest.mark.parametrize("how", ["nan", "inf", "added nan", "gradient"])
@pytest.mark.parametrize(("zero", "precision"), [(1, "fp32"), (2, "bf16"), (3, "fp32")])
def test_the_step_is_skipped_and_its_images_are_named(
    tmp_path: Path, zero: int, precision: str, how: str, capfd: pytest.CaptureFixture[str]
) -> None:
    found = go(tmp_path, Poisoned(how), zero=zero, precision=precision)
    before = {step: weights for step, _, _, weights in found}
    assert before[6] == before[7]
    assert before[5] != before[6]
    assert before[8] != before[7]
    assert len(before) == STEPS
    (row,) = written(tmp_path)
    check_row(row, how, ranks=1)
    assert f"{tmp_path / 'nonfinite.jsonl'} names the images" in capfd.readouterr().err


@pytest.mark.parametrize(("how", "rows"), [("nan", 1), ("gradient", 0)])
def test_in_fp16_a_gradient_counts_only_at_the_lowest_scale_and_a_loss_at_once(
    tmp_path: Path, how: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)
    found = go(tmp_path, Poisoned(how), precision="fp16")
    before = {step: weights for step, _, _, weights in found}
    assert before[6] == before[7] != before[8]
    assert (tmp_path / "nonfinite.jsonl").is_file() == bool(rows)


def test_a_run_goes_back_and_passes_over_the_images_and_a_resumed_one_does_the_same(tmp_path: Path) -> None:
    back = {"nonfinite": "rollback"}
    whole = go(tmp_path / "whole", Poisoned("nan"), faults=back)
    assert [step for step, *_ in whole][::4] == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8, 9, 10, 11, 12]
    again = whole[6 * 4 :]
    metrics = [json.loads(line)["step"] for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert metrics == [2, 4, 6, 8, 10, 12]
    # What it should be: a run that goes on from step 4 with a stream that lacks the images of steps 5 and 6.
    go(tmp_path / "other", Poisoned("nan"), end_at=5)
    assert go(tmp_path / "other", Poisoned("nan"), passed=2) == again
    for end_at in (6, 7, 10):  # after the fault, before a checkpoint; after one
        shutil.rmtree(tmp_path / "other")
        first = go(tmp_path / "other", Poisoned("nan"), faults=back, end_at=end_at)
        resumed = go(tmp_path / "other", Poisoned("nan"), faults=back)
        assert resumed == [*whole[4 * 4 : 6 * 4], *again][-len(resumed) :]
        assert len(first) < len(whole)
        assert [row | {"time": 0} for row in written(tmp_path / "other")] == [
            row | {"time": 0} for row in written(tmp_path / "whole")
        ]
    check_row(written(tmp_path / "whole")[0], "nan", ranks=1)
    assert written(tmp_path / "whole")[0]["to"] == 4


@pytest.mark.parametrize(
    ("faults", "says"),
    [
        ({}, "steps 6 to 10 was not finite"),
        ({"budget": 2}, "steps 6 to 7 was not finite"),
        (
            {"nonfinite": "rollback", "budget": 2},
            "the loss of step 5 is not finite on rank 0, after the run has gone back 2",
        ),
        ({"nonfinite": "stop"}, "the loss of step 6 is not finite on rank 0"),
    ],
)
def test_the_run_ends_when_its_patience_does_also_over_a_resume(
    tmp_path: Path, faults: dict[str, Any], says: str
) -> None:
    def task() -> Poisoned:
        return Poisoned("nan", to_the_end=True)

    with pytest.raises(TrainingError, match=says) as error:
        go(tmp_path / "whole", task(), faults=faults)
    assert str(tmp_path / "whole" / "nonfinite.jsonl") in str(error.value)
    go(tmp_path / "parts", task(), faults=faults, end_at=5)
    if not faults:
        go(tmp_path / "parts", task(), faults=faults, end_at=9)  # step 8 is saved, the third that was skipped
    with pytest.raises(TrainingError, match=says):
        go(tmp_path / "parts", task(), faults=faults)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("nonfinite")
    (out / "said").write_text(call(nonfinite, out)[1])
    return out


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_do_the_same_where_one_has_the_bad_image(of_two: Path, case: str) -> None:
    how, _, faults = CASES[case]
    check_row(written(of_two / case)[0], how, ranks=2)
    codes = json.loads((of_two / "codes.json").read_text())[case]
    if case == "stop":
        assert codes == [8, 8]
        said = {(of_two / case / f"said-{rank}").read_text() for rank in (0, 1)}
        assert len(said) == 1
        assert said.pop().startswith("the loss of step 6 is not finite on rank ")
        return
    assert codes == [0, 0], (of_two / "said").read_text()[-6000:]
    ranks = [json.loads((of_two / case / f"found-{rank}.json").read_text()) for rank in (0, 1)]
    steps = [[step for step, *_ in rows][::2] for rows in ranks]
    expected = [*range(1, 7), *range(5, 13)] if faults else list(range(1, 13))
    assert steps == [expected, expected]
    before = {step: weights for step, _, _, weights in ranks[0]}
    if not faults:
        assert before[6] == before[7] != before[8]
    else:  # the images of steps 5 and 6 are passed over
        assert {p for _, positions, *_ in ranks[0][12:] for p in positions} <= set(range(6 * GLOBAL, 14 * GLOBAL))
