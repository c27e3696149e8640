"""Bands of losses are made of runs that went well, and hold those runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mae_pipe import recipe
from mae_pipe.monitoring.rules import Story, outside_the_band
from tools.measure_band import band, losses


def written(folder: Path, shift: float = 0.0, every: float = 2.0) -> Path:
    """A run of six epochs, a row every half: its loss is 1 / epoch."""
    folder.mkdir()
    rows = [{"kind": "monitor", "step": 0, "epoch": 0.0}]
    for half in range(1, 13):
        row = {"step": half, "epoch": half / 2}
        rows.append({"kind": "train", **row, "loss": 2 / half + shift})
        if not half % (2 * every):
            rows.append({"kind": "monitor", **row})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_it_is_the_range_over_runs_and_a_quarter_of_the_fall(tmp_path: Path) -> None:
    runs = [losses(written(tmp_path / str(shift), shift)) for shift in (0.0, 0.02)]
    first, last = (2 / 3 + 2 / 4) / 2, (2 / 11 + 2 / 12) / 2
    assert runs[0] == pytest.approx({2.0: first, 4.0: (2 / 7 + 2 / 8) / 2, 6.0: last})
    found = band(runs)
    margin = (first - last) / 4
    assert [point[0] for point in found] == [2.0, 4.0, 6.0]
    assert found[0][1:] == pytest.approx((first - margin, first + 0.02 + margin), abs=0.01)
    assert found[-1][1:] == pytest.approx((last - margin, last + 0.02 + margin), abs=0.01)


def test_all_readings_are_taken_where_a_few_would_not_hold_the_runs() -> None:
    run = {2.0: 5.3, 4.0: 5.9, 6.0: 5.8, 8.0: 5.4, 10.0: 5.2, 12.0: 5.1, 14.0: 5.0}
    assert [point[0] for point in band([run], points=3)] == list(run)
    assert all(low < run[epoch] < high for epoch, low, high in band([run], points=3))
    assert len(band([{epoch: 5.0 - epoch / 10 for epoch in run}], points=3)) == 3


@pytest.mark.parametrize(("shift", "told"), [(0.0, False), (0.02, False), (0.25, True), (-0.2, True)])
def test_runs_that_it_was_made_of_are_in_it_and_others_are_told(tmp_path: Path, shift: float, told: bool) -> None:
    made = band([losses(written(tmp_path / str(n), n / 50)) for n in range(2)])
    chosen = recipe.load("digits", {"monitor.band": [list(point) for point in made]})
    assert isinstance(chosen, recipe.Pretrain)
    run = written(tmp_path / "other", shift)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    ends = [n + 1 for n, row in enumerate(rows) if row["kind"] == "monitor" and row["step"]]
    said = [outside_the_band(Story(chosen, rows[:end])) for end in ends]
    assert [text is not None for text in said] == [told] * 3


def test_runs_that_make_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 0 readings"):
        losses(tmp_path)
    with pytest.raises(ValueError, match="at other epochs"):
        band([losses(written(tmp_path / "a")), losses(written(tmp_path / "b", every=3.0))])
    with pytest.raises(ValueError, match="the same at every reading"):
        band([{2.0: 1.0, 4.0: 1.0}])
    torn = (tmp_path / "a" / "metrics.jsonl").read_bytes() + b'{"kind": "tr'
    (tmp_path / "a" / "metrics.jsonl").write_bytes(torn)
    assert len(losses(tmp_path / "a")) == 3
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == torn  # a run that is going on is only read
