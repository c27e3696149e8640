"""The page on the paper's results: its commands are run, on small networks; its recipes and changes are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from mae_pipe import cli, recipe
from mae_pipe.catalog import Catalog
from mae_pipe.tasks import MaskedAutoencoder
from tests.small_runs import SHORT, narrow, pictures, settings
from tests.test_readme import blocks

PAGE = Path(__file__).parent.parent / "docs" / "reproducing-the-paper.md"
TEXT = PAGE.read_text(encoding="utf-8")
CODE = re.findall(r"`[^`\n]+`", TEXT)
COMMANDS = [block.splitlines() for block in blocks(PAGE, "")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures"))


def short(line: str, folder: Path, here: Path) -> list[str]:
    """The words of a command, on our pictures, in ``here``, with changes that make it short and its networks small."""
    places = {"IMAGENET": folder / "images", "SHARDS": folder / "shards"}
    places |= dict.fromkeys(("CIFAR", "IMAGENETTE"), folder / "shards")
    verb, *words = shlex.split(line.replace(" --nproc 8", ""))[1:]
    words = [re.sub(r"^[A-Z]{3,}", lambda name: str(places.get(name[0], here / name[0])), word) for word in words]
    if verb == "shard":  # what it says there is tried in a folder of its own
        words[-1] = str(here / "SHARDS")
    of = next((word for word in words[:1] if word in recipe.names()), None)
    small = narrow(of, depth=4) if verb in ("pretrain", "finetune") and of else []
    if verb == "finetune" and of:
        (here / "shape.toml").write_text(
            CliRunner().invoke(cli._group, ["recipes", "show", of, *settings(small)]).output
        )
        words[0], small = str(here / "shape.toml"), []
    changes = settings([*SHORT, *small]) if verb in ("pretrain", "finetune", "probe") else []
    return [verb, *words[:1], *changes, *words[1:]]  # what the page changes comes last


@pytest.mark.parametrize("lines", COMMANDS, ids=[lines[0][9:60] for lines in COMMANDS])
def test_the_pages_commands_run(lines: list[str], folder: Path, tmp_path: Path) -> None:
    for line in lines:
        done = CliRunner().invoke(cli._group, short(line, folder, tmp_path), catch_exceptions=False)
        assert done.exit_code == 0, f"{line}\n{done.output}"


def test_every_recipe_that_it_names_is_one() -> None:
    named = set(re.findall(r"`((?:mae_vit|finetune_vit|probe|scratch|partial)_\w+)`", TEXT)) - {"partial_vit_large_"}
    assert named - set(recipe.names()) == set()
    families = ("pretraining", "finetuning", "probing", "scratch", "partial")
    papers = {name for family in families for name in recipe.families()[family]} - {"finetune", "probe", "knn"}
    assert [n for n in papers if not {f"`{n}`", f"`{n.removeprefix('partial_vit_large_')}`"} & set(CODE)] == []


@pytest.mark.parametrize("name", recipe.families()["pretraining"])
def test_it_expects_what_the_recipes_expect(name: str) -> None:
    expected = re.findall(r"(?:finetuned|linear) ([\d.]+) %", recipe.load(name).about)
    rows = [line for line in TEXT.splitlines() if line.startswith(f"| `{name}` | `finetune")]
    assert all(any(f"| {number} |" in row for row in rows) for number in expected)


def test_every_ablation_is_a_recipe_that_builds() -> None:
    rows = re.findall(r"^\| 1[a-f] \| (.*?) \|", TEXT, flags=re.MULTILINE)
    assert len(rows) >= 13
    built = 0
    for row in rows:
        first, *others = re.findall(r"`([^`]+)`", row)
        more = [other for other in others if "=" in other]
        values = [f"{first.partition('=')[0]}={other}" for other in others if "=" not in other]
        for change in (first, *values):
            if "dvae" not in change:  # wants a tokenizer
                changes = [*narrow("mae_vit_large_patch16_pixel"), change, *more]
                loaded = recipe.load("mae_vit_large_patch16_pixel", changes)
                assert isinstance(loaded, recipe.Pretrain)
                MaskedAutoencoder.from_recipe(loaded, Catalog())
                built += 1
    assert built >= 19
