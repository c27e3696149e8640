"""Every value of a recipe says where it comes from; recipes are shown, compared and copied."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mae_pipe import provenance, recipe
from mae_pipe.cli.recipes import recipes
from mae_pipe.errors import RecipeError
from mae_pipe.toml import comments_of, flat
from tools.derive_recipes import files

TRICKY = '''
# not beside a value
task = "pretrain"  # the first
about = 'a # in a string'
[data]  # of the table
size = 32  #   spaced
mean = [ # three of them
  0.5, 0.5, # two
  0.5,
] # and the last
std = [0.5, 0.5, 0.5]
[mask]
options = { "odd # key" = "}#\\"", b = { c = 1 } } # inline
[engine.deepspeed]   # nested
text = """
# not a comment "" \\""" either
"""""
raw = \'\'\'
# nor this\'\'\' # but this
"a.b".c = 1
'''


def run(*arguments: str) -> Result:
    return CliRunner().invoke(recipes, arguments, catch_exceptions=False)


def rows(said: str) -> dict[str, list[str]]:
    """First word of a line -> its words."""
    return {line.split()[0]: line.split() for line in said.splitlines() if line.strip()}


def test_comments_are_found_whatever_the_values_are() -> None:
    assert comments_of(TRICKY) == {
        "task": (3, "the first"),
        "about": (4, ""),
        "data.size": (6, "spaced"),
        "data.mean": (7, "three of them; two; and the last"),
        "data.std": (11, "of the table"),
        "mask.options.odd # key": (13, "inline"),
        "mask.options.b.c": (13, "inline"),
        "engine.deepspeed.text": (15, "nested"),
        "engine.deepspeed.raw": (18, "but this"),
        "engine.deepspeed.a.b.c": (20, "nested"),
    }
    assert set(comments_of(TRICKY)) == set(flat(tomllib.loads(TRICKY)))


@pytest.mark.parametrize("name", recipe.names())
def test_every_value_of_a_built_in_recipe_has_a_source(name: str) -> None:
    silent = {key for key, (_, source) in comments_of(recipe.text_of(name)[0]).items() if not source}
    assert silent - {"task", "about"} == set()


@pytest.mark.parametrize("name", recipe.names())
def test_a_built_in_recipe_that_is_saved_is_the_same_and_keeps_its_sources(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(run("show", name).output, encoding="utf-8")
    was, now = provenance.read(name), provenance.read(str(tmp_path / "mine.toml"))
    assert now.recipe == was.recipe
    assert now.recipe.data.model_fields_set.issuperset({"size"}) == ("data.size" in was.values())
    assert now.sources == was.sources
    assert run("show", str(tmp_path / "mine.toml")).output == run("show", name).output


def test_a_value_says_where_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'task = "probe"\nseed = 3\n[head]\nname = "linear"\noptions = { std = 0.1 }  # theirs\n'
    )
    found = provenance.read(str(tmp_path / "mine.toml"), ["optimizer.base_lr=0.1", "data.std=[0.5, 0.5, 0.5]"])
    assert {key: found.sources[key] for key in ("seed", "head.options.std", "data.crop", "data.size")} == {
        "seed": f"{tmp_path / 'mine.toml'}, line 2",
        "head.options.std": "theirs",
        "data.crop": provenance.DEFAULT,
        "data.size": provenance.INHERITED,
    }
    assert (found.sources["optimizer.base_lr"], found.sources["data.std"]) == ("--set", "--set")
    assert provenance.read("probe", ["head.name=knn"]).sources["head.name"] == "--set"
    found = provenance.read("mae_vit_base_patch16", ["mask.ratio=0.5"])
    assert found.sources["monitor.band"] == "none, as --set leads to other losses"


def test_what_follows_from_the_values_is_told() -> None:
    said = run("show", "mae_vit_base_patch16", "--set", "data.global_batch=1024").output
    assert "\n# peak learning rate = base_lr x global_batch / 256 = 0.0006 at 1,024 images a step\n" in said
    assert "\n# 1,251.1 steps an epoch of 1,281,167 images, 1,000,911 in all\n" in said
    assert "steps an epoch" not in run("show", "digits").output
    assert "\n# 62.5 steps an epoch of 4,000 images, 1,875 in all\n" in run("show", "digits", "--images", "4000").output
    plain = run("show", "mae_vit_base_patch16", "--plain").output
    assert "#" not in plain
    assert recipe.parse(tomllib.loads(plain), "plain") == recipe.load("mae_vit_base_patch16")


def test_what_differs_is_told_with_both_sources(tmp_path: Path) -> None:
    for name, base_lr in (("run", "mask.ratio=0.75"), ("other", "mask.ratio=0.6")):
        (tmp_path / name).mkdir()
        values = recipe.load("mae_vit_base_patch16", [base_lr]).model_dump(mode="json")
        (tmp_path / name / "recipe.json").write_text(json.dumps(values))
    a = provenance.read("mae_vit_base_patch16")
    for b in (provenance.read(str(tmp_path / "other")), provenance.read(str(tmp_path / "other" / "recipe.json"))):
        source = "paper, table 1f; main_pretrain.py"
        ratio, band = provenance.differences(a, b)
        assert ratio == ("mask.ratio", "0.75", "0.6", source, "the run")
        assert (band[0], band[2], band[4]) == ("monitor.band", "[]", "the run")  # it was of the other ratio
    assert run("diff", "mae_vit_base_patch16", str(tmp_path / "run")).output == "they have the same values\n"
    with pytest.raises(RecipeError, match="is a run, whose recipe is fixed"):
        provenance.read(str(tmp_path / "run"), ["seed=1"])
    said = rows(run("diff", "mae_vit_base_patch16", "mae_vit_large_patch16").output)
    assert {"encoder.width", "encoder.depth", "encoder.heads"} <= set(said)
    assert said["encoder.width"][1:3] == ["768", "1024"]
    assert "optimizer.base_lr" not in said
    assert rows(run("diff", "mae_vit_base_patch16", "probe").output)["decoder.depth"][1] == "8"  # one has it


def test_the_list_can_be_narrowed() -> None:
    def named(*arguments: str) -> set[str]:
        return set(rows(run("list", *arguments).output)) & set(recipe.names())

    assert named() == set(recipe.names())
    assert {"digits", "probe_digits", "finetune_digits", "tokenizer_digits"} <= named("digits")
    assert {"imagenette_mae", "imagenette_supervised"} <= named("imagenette") - named("digits")
    assert named("DIGITS", "--task", "probe") == {"probe_digits"}
    assert run("list", "nothing of that name").output.startswith("no built-in recipe is like that")
    assert sorted(name for names in recipe.families().values() for name in names) == recipe.names()


def test_a_copy_is_the_file_and_never_overwrites_unasked(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    assert run("copy", "digits", str(mine)).exit_code == 0
    assert mine.read_text(encoding="utf-8") == recipe.text_of("digits")[0]
    refused = run("copy", "probe", str(mine))
    assert (refused.exit_code, "--force" in refused.output) == (2, True)
    assert run("copy", "probe", str(mine), "--force").exit_code == 0
    assert recipe.load(str(mine)) == recipe.load("probe")
    assert run("copy", "probe", str(tmp_path / "mine")).exit_code == 2


@pytest.mark.parametrize(("path", "text"), [pytest.param(*made, id=made[0].stem) for made in files()])
def test_derived_recipes_are_what_their_tool_writes(path: Path, text: str) -> None:
    assert path.read_text(encoding="utf-8") == text, "python -m tools.derive_recipes"
