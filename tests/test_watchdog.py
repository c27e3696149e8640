"""A rank that is killed, stopped, hangs or fails ends the whole job in seconds, and is named."""

from __future__ import annotations

import json
import re

import pytest

from tests.nursing import call
from tests.workers import watched

CASES = {  # what happens, to which rank -> the exit codes of the ranks that end, and what is said
    ("nothing", 0): ([0, 0, 0], ""),
    ("killed", 1): ([9, -9, 9], "rank 1 of 3 on .* is lost: silent for"),
    ("killed", 0): ([-9, 9, 9], "rank 0 of 3"),
    ("stopped", 2): ([9, 9], "rank 2 of 3 on .* is lost: silent for"),
    ("stopped", 0): ([9, 9], "rank 0 of 3"),
    ("hangs", 1): ([9, 9, 9], "the furthest behind is rank 1 of 3 on .*: waiting for data, step 3"),
    ("hangs", 0): ([9, 9, 9], "the furthest behind is rank 0 of 3 on .*: waiting for data, step 3"),
    ("fails", 1): ([4, 4, 4], "rank 1 of 3 on .* ended: shard train-000001.tar is damaged"),
    ("fails", 0): ([4, 4, 4], "rank 0 of 3 on .* ended: shard train-000001.tar is damaged"),
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], tuple[list[int], str]]:
    """The exit codes of every case, and what its ranks said."""
    out = tmp_path_factory.mktemp("watched")
    said, _ = call(watched, out, *(word for case in CASES for word in case), seconds=150)
    codes = map(json.loads, said.splitlines())
    return {case: (next(codes), (out / f"{case[0]}-{case[1]}").read_text()) for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_a_lost_rank_is_named(ended: dict[tuple[str, int], tuple[list[int], str]], case: tuple[str, int]) -> None:
    (codes, said), (expected, sentence) = ended[case], CASES[case]
    assert codes == expected, said
    assert "Exception" not in said  # torch's own pages
    if sentence:
        assert any(re.search(sentence, line) for line in said.splitlines()), said
        if case[1]:
            assert len(said.splitlines()) == (2 if case[0] == "fails" else 1), said
    else:
        assert not said
