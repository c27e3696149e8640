"""Recipes are typed, frozen, and say what is wrong with them."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from mae_pipe import recipe
from mae_pipe.changes import apply
from mae_pipe.errors import RecipeError


def written(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def test_the_defaults_are_the_papers() -> None:
    mae = recipe.Pretrain()
    assert mae.lr == pytest.approx(2.4e-3)
    assert (mae.mask.ratio, mae.data.crop_scale, mae.optimizer.betas) == (0.75, (0.2, 1.0), (0.9, 0.95))
    assert (mae.decoder.depth, mae.decoder.width, mae.schedule.warmup_epochs) == (8, 512, 40.0)


def test_changes_are_typed_values_on_top_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, 'task = "pretrain"\n[data]\nsize = 32\n[encoder]\npatch = 8\n')
    changed = recipe.load(path, ["data.global_batch=512", "mask.name=block", "optimizer.base_lr=1e-3"])
    assert isinstance(changed, recipe.Pretrain)
    assert (changed.data.size, changed.data.global_batch, changed.mask.name) == (32, 512, "block")
    assert changed.optimizer.base_lr == 1e-3


def test_the_options_of_a_plugin_go_with_its_name() -> None:
    def head(*changes: str) -> recipe.Chosen:
        loaded = recipe.load("probe", changes)
        assert isinstance(loaded, recipe.Downstream)
        return loaded.head

    assert head().options == head("head.name=linear").options != {}
    assert head("head.name=knn") == recipe.Chosen(name="knn")
    for changes in (("head.name=knn", "head.options.k=3"), ("head.options.k=3", "head.name=knn")):
        assert head(*changes) == recipe.Chosen(name="knn", options={"k": 3})
    other = recipe.load("digits_supervised", ["method.name=mine"])
    assert isinstance(other, recipe.Pretrain)
    assert other.method == recipe.Chosen(name="mine")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('task = "pretrain"\n[data]\nglobal_bach = 3', "unknown key 'data.global_bach' (did you mean 'global_batch'?)"),
        ('task = "pretrain"\n[mask]\nratio = 1.5', "mask.ratio: Input should be less than 1, got 1.5"),
        ('task = "pretrain"\n[data]\nsize = "big"', "data.size"),
        ('task = "pretrain"\n[data]\nsize = 100', "data.size 100 must be a multiple of encoder.patch 16"),
        ('task = "dance"', "task = 'dance'"),
        ("task = ", "is not valid TOML"),
    ],
)
def test_a_wrong_recipe_is_refused_in_a_sentence(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe.load(written(tmp_path, text))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value).strip()


def test_an_unknown_recipe_names_the_closest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'mae_vit_base_patch16'"):
        recipe.load("mae_vit_bas_patch16")


@pytest.mark.parametrize("change", ["data.size", "=3", "task.x=1"])
def test_a_malformed_change_is_refused(change: str) -> None:
    with pytest.raises(RecipeError, match=r"--set|the change of .task.x"):
        recipe.load("mae_vit_base_patch16", [change])


def test_a_heading_is_what_the_whole_recipe_says() -> None:
    for name in recipe.names():
        loaded = recipe.load(name)
        assert recipe.heading(name) == (loaded.task, loaded.about)


def test_a_recipe_for_another_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is for 'pretrain', not for 'probe'"):
        recipe.load(written(tmp_path, 'task = "pretrain"'), task="probe")


def test_recipes_are_frozen_and_fingerprinted_by_value() -> None:
    mae = recipe.Pretrain()
    with pytest.raises(ValidationError):
        mae.seed = 3  # type: ignore[misc]
    assert mae.fingerprint() == recipe.Pretrain().fingerprint()
    assert mae.fingerprint() != recipe.Pretrain(seed=1).fingerprint()


def keys(model: type[BaseModel], before: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that a recipe may hold, with its default."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            inside = field.default
            for key, default in keys(field.annotation, f"{before}{name}."):
                last = key.removeprefix(f"{before}{name}.")
                yield key, getattr(inside, last, default)
        else:
            yield before + name, field.default


def test_every_key_and_its_default_are_documented() -> None:
    text = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_.]+)` \|(.*?)\|", text, re.MULTILINE)
    documented = {key: said.strip(" `") for key, said in rows if key not in recipe.names()}
    known = {**dict(keys(recipe.Pretrain)), **dict(keys(recipe.Tokenizer)), **dict(keys(recipe.Downstream))}
    assert set(documented) == set(known)
    for key, default in known.items():
        if key == "task" or default is PydanticUndefined:
            assert documented[key] == "", key
        elif default is None:
            assert documented[key] == "none", key
        else:
            said = json.loads(documented[key])
            wanted = list(default) if isinstance(default, tuple) else default
            assert said == pytest.approx(wanted, rel=1e-4) if isinstance(wanted, float | list) else said == wanted, key


def test_every_built_in_recipe_is_documented() -> None:
    text = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert {name for name in recipe.names() if f"| `{name}` |" not in text} == set()


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ((), True),
        (("seed=3", "optimizer.base_lr=0.1", "engine.zero=3", "data.workers=1", "monitor.every_epochs=1.0"), True),
        (("mask.ratio=0.75", "schedule.epochs=800"), True),  # what it is already
        (("mask.ratio=0.5",), False),
        (("target.name=pixel",), False),
        (("schedule.epochs=5", "seed=3"), False),
        (("data.size=128", "monitor.every_epochs=1.0"), False),
    ],
)
def test_a_band_of_losses_goes_where_a_change_leads_to_others(changes: tuple[str, ...], kept: bool) -> None:
    values = tomllib.loads(recipe.text_of("mae_vit_base_patch16")[0])
    apply(values, changes)
    assert ("band" in values["monitor"]) == kept


def test_a_band_that_is_given_stays() -> None:
    changes = ("mask.ratio=0.5", "monitor.band=[[1.0, 0.5, 0.9]]")
    for given in (changes, {"mask.ratio": 0.5, "monitor": {"band": [[1.0, 0.5, 0.9]]}}):
        loaded = recipe.load("mae_vit_base_patch16", given)
        assert isinstance(loaded, recipe.Pretrain)
        assert loaded.monitor.band == ((1.0, 0.5, 0.9),)
