"""Every built-in recipe is run for two steps by its command.

All of its values are its own, but for the batch, workers, epochs, how often it saves and looks, and the size of the
networks: two blocks, two heads of four numbers. The slow tests keep the width and have one block.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.torch import save_file

from mae_pipe import cli, recipe
from mae_pipe.autoencoder import build_encoder
from mae_pipe.provenance import as_toml
from tests.small_runs import SHORT, narrow, pictures, settings, small_tokenizer
from tests.tiny import losses

BEIT = "beit_vit_base_paper"
OF = {"base": "mae_vit_base_patch16", "large": "mae_vit_large_patch16", "huge": "mae_vit_huge_patch14"}
SMALL = {"digits": "digits", "imagenette": "imagenette_vit_tiny", "cifar": "cifar_vit_tiny"}
PAPERS = [name for family in ("finetuning", "probing", "scratch") for name in recipe.families()[family]]


def pretrained_by(name: str) -> str:
    """The recipe of the encoder that a head's recipe is for; a pretraining recipe itself."""
    if recipe.load(name).task in ("pretrain", "tokenizer"):
        return name
    if "beit" in name:
        return BEIT
    rest = name.partition("_")[2]
    for own in (SMALL.get(rest, rest), f"mae_{rest}"):
        if own in recipe.names():
            return own
    return next((whole for size, whole in OF.items() if size in name), OF["base"])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures")) / "shards"


def as_pretrained(name: str, changes: list[str], shards: Path, folder: Path) -> Path:
    """A run folder as pretraining leaves it."""
    folder.mkdir(parents=True)
    loaded = recipe.load(name, changes)
    assert isinstance(loaded, recipe.Pretrain)
    shape = loaded.encoder.model_copy(update={"mask_tokens": False})
    encoder = build_encoder(shape, loaded.data.sides, channels=loaded.data.channels)
    save_file(encoder.state_dict(), folder / "encoder.safetensors")
    (folder / "recipe.json").write_text(loaded.model_dump_json())
    (folder / "run.json").write_text(json.dumps({"task": "pretrain", "shards": str(shards)}))
    return folder


def run_it(name: str, changes: list[str], shards: Path, folder: Path) -> None:
    """Two steps of a recipe by its command; ``changes`` are those of the encoder."""
    loaded, given, out = recipe.load(name), list(SHORT), folder / "run"
    if isinstance(loaded, recipe.Downstream) and "blocks" in loaded.head.options:
        changes = [*changes, "encoder.depth=4"]
        given += ["head.options.blocks=[0, 1, 2, 3]", "data.size=64", "sliding.stride=48", "sliding.short_side=64"]
    if isinstance(loaded, recipe.Pretrain):
        begin, given = ["pretrain", name], given + changes
        if loaded.target.name == "dvae":
            given.append(f"target.options.tokenizer={small_tokenizer(folder / 'tokenizer')}")
    elif loaded.task == "tokenizer":
        begin, given = ["tokenizer", "train", name], [*given, "tokenizer.width=4"]
    else:
        begin = [loaded.task, "", "--recipe", name]
        if name.startswith("scratch"):
            (folder / "shape.toml").write_text(as_toml(recipe.load(pretrained_by(name), changes)))
            begin[1:2] = [str(folder / "shape.toml"), "--from-scratch"]
        else:
            begin[1] = str(as_pretrained(pretrained_by(name), changes, shards, folder / "pretrained"))
        assert isinstance(loaded, recipe.Downstream)
        given += ["eval_every_epochs=1.0"]
        given += ["labels_per_class=4"] if loaded.labels_per_class else []
        given += ["head.options.hidden=16"] if "hidden" in loaded.head.options else []
    command = [*begin, "--shards", str(shards), "--out", str(out), *settings(given)]
    done = CliRunner().invoke(cli._group, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    steps = losses(out)
    assert sorted(steps) == ([] if name == "knn" else [1, 2])  # of that nothing is trained
    assert all(np.isfinite(loss) for loss in steps.values())


@pytest.mark.parametrize("name", recipe.names())
def test_every_recipe_makes_two_steps(name: str, shards: Path, tmp_path: Path) -> None:
    loaded, of, depth = recipe.load(name), pretrained_by(name), 2
    if isinstance(loaded, recipe.Downstream):  # as many as it names
        depth = max(
            [depth, int(loaded.tune_blocks or 0), *(1 + block for block in loaded.head.options.get("blocks", []))]
        )
    run_it(name, [] if loaded.task == "tokenizer" else narrow(of, depth), shards, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OF.values(), *PAPERS])
def test_the_papers_recipes_make_two_steps_at_full_width(name: str, shards: Path, tmp_path: Path) -> None:
    run_it(name, ["encoder.depth=1", "decoder.depth=1"], shards, tmp_path)


def test_a_scratch_recipe_takes_its_shape_from_a_recipes_name(shards: Path, tmp_path: Path) -> None:
    begin = ["finetune", "digits", "--from-scratch", "--recipe", "finetune_digits", "--labels-per-class", "4"]
    where, changes = ["--shards", str(shards), "--out", str(tmp_path / "run")], settings(list(SHORT))
    done = CliRunner().invoke(cli._group, [*begin, *where, *changes], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (about["pretrained"], about["from_scratch"]) == ("digits", True)
    settled = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert settled["data"]["size"] == 28
