"""A table of the paper, run in networks that are as small as they can be: end to end, in parts, and killed."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from mae_pipe.errors import DataError, DiskError, RunError
from mae_pipe.reproducing import verb
from mae_pipe.reproducing.folder import read
from mae_pipe.reproducing.jobs import log_of
from tests.reproduced import TABLE, clocked, reproduce
from tests.small_runs import pictures

PAGES = [f"{TABLE}.{ending}" for ending in ("html", "md", "json")]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures")) / "shards"


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of the table, never stopped."""
    out = tmp_path_factory.mktemp("whole") / "out"
    clocked(out)
    reproduce(out, shards)
    return out


def said(out: Path) -> dict[str, bytes]:
    """The pages, and the losses that they do not show."""
    files = [*(out / page for page in PAGES), *out.glob("stems/*/pretrained.json"), *out.glob("stems/*/*/result.json")]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def killed(out: Path, shards: Path, lives: list[float]) -> list[str]:
    """How the lives ended; the last one is not killed."""
    clocked(out)
    words = [sys.executable, "-m", "tests.workers.reproduced", str(out), str(shards), *map(str, lives)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    ends = done.stdout.split()
    assert ends[-1] == "0", done.stderr
    return ends


def test_a_table_is_run_and_its_pages_say_so(whole: Path, shards: Path) -> None:
    written = json.loads((whole / f"{TABLE}.json").read_text())
    assert written["missing"] == []
    results = {json.loads(path.read_text())["top1"] for path in whole.glob("stems/*/*/result.json")}
    for row in written["rows"]:
        for measure in ("finetuned", "linear"):
            ours = row[measure]
            assert ours["seeds"] == [ours["mean"]]
            assert any(ours["mean"] == pytest.approx(100 * top1) for top1 in results)
            assert ours["deviation"] is None
    html = (whole / f"{TABLE}.html").read_text()
    assert "59.6" in html
    assert "84.9" in html
    assert "sha256-" in html  # nothing but our own, by its hash
    assert str(whole) not in html
    assert not list(whole.glob("stems/*/*/checkpoints"))
    before = said(whole)
    reproduce(whole, shards)  # nothing is left
    assert said(whole) == before


def test_what_is_not_there_yet_is_named(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RunError, match="no run 'digits-s0-'"):
        reproduce(out, shards, only="digits-s0-")
    page = verb.page_of(TABLE, out, seeds=2)
    text = page.with_suffix(".md").read_text()
    assert text.count("seed 1") == 4
    assert "not measured yet" in text
    with pytest.raises(RunError, match="begun with scale digits, not imagenette"):
        verb.run(
            TABLE, out, verb.Asked("imagenette", shards, 1, (), ()), at_once=1, only=None, console=Console(quiet=True)
        )
    with pytest.raises(DataError, match="--shards"):
        verb.run(
            TABLE, tmp_path / "new", verb.Asked("imagenette", None, 1, (), ()), at_once=1, only=None,
            console=Console(quiet=True),
        )  # fmt: skip


def test_processes_at_a_time_give_the_same_page(whole: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    clocked(out)
    reproduce(out, shards, jobs=2)
    assert said(out) == said(whole)


def test_a_process_that_fails_says_its_sentence(whole: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    here = read(out)
    first, second = sorted((out / "stems").glob("digits*"))
    shutil.rmtree(first)
    first.write_text("in the way")
    with pytest.raises(DiskError, match=f"{first.name}: cannot write to .* is a file"):
        reproduce(out, shards, jobs=2)
    assert log_of(first.name, here).is_file()
    assert (second / "pretrained.json").is_file()


@pytest.mark.slow  # lives of a process that imports everything anew; the next test kills fifty times
def test_a_killed_one_goes_on_and_ends_with_the_same_page(whole: Path, shards: Path, tmp_path: Path) -> None:
    ends = killed(tmp_path / "out", shards, [0.15, 0.3, 0.6, 0.5])
    assert "killed" in ends
    assert said(tmp_path / "out") == said(whole)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_kills_change_no_page(whole: Path, shards: Path, tmp_path: Path) -> None:
    draw = random.Random(50)
    kills, number = 0, 0
    while kills < 50:
        number += 1
        out = tmp_path / f"out{number}"
        ends = killed(out, shards, [draw.uniform(0, 1.5) for _ in range(5)])
        kills += ends.count("killed")
        assert said(out) == said(whole)
        shutil.rmtree(out)
