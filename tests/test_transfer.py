"""The page on transfer: its commands are run, in their order, on a small run and small pictures."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from mae_pipe import cli
from tests.small_runs import SHORT, narrow, pictures, settings
from tests.test_readme import blocks

PAGE = Path(__file__).parent.parent / "docs" / "transfer.md"
COMMANDS = [line for block in blocks(PAGE, "") for line in block.splitlines()]
TRAINS = {"probe", "finetune"}


def run(words: list[str]) -> str:
    done = CliRunner().invoke(cli._group, words, catch_exceptions=False)
    assert done.exit_code == 0, f"{shlex.join(words)}\n{done.output}"
    return done.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with RUN and OTHER of the page in it."""
    here = pictures(tmp_path_factory.mktemp("transfer"))
    shutil.copytree(here / "images", here / "OTHER")
    name = "mae_vit_base_patch16"
    small = settings([*SHORT, *narrow(name), "data.size=32"])
    run(["pretrain", name, "--shards", str(here / "shards"), "--out", str(here / "RUN"), *small])
    return here


def test_the_pages_commands_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for line in COMMANDS:
        verb, *words = shlex.split(line, comments=True)[1:]
        run([verb, *words[:1], *(settings([*SHORT]) if verb in TRAINS else []), *words[1:]])
    made = {path.parent.name for path in (folder / "RUN").glob("*/result.json")}
    assert {"probe", "probe-sweep", "probe-logistic", "probe-knn-cached", "probe-attentive-cached"} <= made
    assert {"finetune", "finetune-scratch", "finetune-blocks1", "finetune-2", "paper", "large"} <= made
    measured = json.loads((folder / "RUN" / "other.json").read_text())
    assert measured["sets"][0]["images"] == 8
    assert len((folder / "RUN" / "predictions.csv").read_text().splitlines()) == 1 + 3
