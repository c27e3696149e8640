"""The recipes' values are those of papers and official code: a table that was made by hand, not from the files."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from mae_pipe import recipe
from mae_pipe.errors import RecipeError
from mae_pipe.optim import Plan
from mae_pipe.provenance import IMAGENET
from mae_pipe.toml import comments_of, flat

TABLE = json.loads((Path(__file__).parent / "golden" / "recipes.json").read_text(encoding="utf-8"))
OURS = {  # of no effect on what is learned, or said to be ours at their lines
    "task", "about", "seed", "train_split", "eval_split", "eval_every_epochs", "data.workers", "data.micro_batch",
    "engine.zero", "engine.precision", "saving.every_epochs", "saving.keep_last", "logging.every_steps",
    "logging.pictures_every_epochs",
}  # fmt: skip


def published(name: str) -> dict[str, object]:
    """What the table says of a recipe."""
    found: dict[str, object] = {}
    for part in TABLE:
        if any(fnmatchcase(name, pattern) for pattern in part["names"]):
            assert not set(found) & set(part["values"]), part["source"]
            found |= part["values"]
    return found


PUBLISHED = [name for name in recipe.names() if published(name)]


def test_the_papers_families_are_in_the_table() -> None:
    families = recipe.families()
    papers = {
        name for family in ("pretraining", "finetuning", "probing", "partial", "scratch") for name in families[family]
    }
    papers |= {name for name in families["methods"] if "_vit_base_" in name}  # the others are ours
    assert papers - set(PUBLISHED) == {"knn"}
    assert len(PUBLISHED) >= 41
    patterns = [pattern for part in TABLE for pattern in part["names"]]
    assert [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in recipe.names())] == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_values_are_the_published_ones(name: str) -> None:
    loaded, wanted = recipe.load(name), published(name)
    values = flat(loaded.model_dump(mode="json")) | {"peak_lr": pytest.approx(loaded.lr, rel=1e-12)}
    assert {key: values.get(key) for key in wanted} == wanted
    told = {key: source for key, (_, source) in comments_of(recipe.text_of(name)[0]).items()}
    unpublished = set(told) - set(wanted) - OURS
    said = ("ours", "of no effect", "not published", "not in the paper", "peak")
    silent = {key for key in unpublished if not any(word in told[key] for word in said)}
    assert silent - {"optimizer.base_lr"} == set()  # that is in the table as the peak


def test_a_default_is_the_recipe_that_it_says_it_is() -> None:
    for default, named in (("finetune", "finetune_vit_base"), ("probe", "probe_vit_base")):
        a, b = (recipe.load(name).model_dump(exclude={"about"}) for name in (default, named))
        assert a == b


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_global_batch_stays_on_any_number_of_ranks(name: str) -> None:
    loaded = recipe.load(name)
    alone = Plan.of(loaded, IMAGENET, 1)
    assert alone.steps == int(loaded.schedule.epochs * IMAGENET / loaded.data.global_batch)
    for world in range(1, 65):
        if loaded.data.global_batch % world:
            with pytest.raises(RecipeError, match="does not divide over"):
                Plan.of(loaded, IMAGENET, world)
            continue
        plan = Plan.of(loaded, IMAGENET, world)
        assert plan.micro_batch * plan.accumulation * world == loaded.data.global_batch
        assert (plan.steps, plan.peak_lr, plan.min_lr) == (alone.steps, alone.peak_lr, alone.min_lr)
        for step in (0, 1, plan.steps // 7, plan.steps - 1):
            assert plan.lr(step) == alone.lr(step)
