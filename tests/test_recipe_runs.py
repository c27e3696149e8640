"""Every built-in recipe is run for two steps by its command.

All of its values are its own, but for the batch, workers, epochs, how often it saves and looks, and the size of the
networks: two blocks, four numbers a head. The slow tests keep the width.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from mae_pipe import cli, recipe
from mae_pipe.catalog import Catalog
from mae_pipe.sharding import build
from mae_pipe.tasks import Pretraining
from tests.tiny import losses

SHORT = (
    "data.global_batch=4",
    "data.micro_batch=2",  # least that mixing and batch norm can do with
    "data.workers=0",
    "schedule.epochs=1.0",  # of 8 images: 2 steps
    "schedule.warmup_epochs=0.5",
    "saving.every_epochs=1.0",
    "logging.every_steps=1",
)
OF = {"base": "mae_vit_base_patch16", "large": "mae_vit_large_patch16", "huge": "mae_vit_huge_patch14"}
OTHERS = {"digits": "digits", "imagenette": "imagenette_vit_tiny", "cifar": "cifar_vit_tiny"}
OWN = {  # of these heads: the recipe of the encoder that they are for
    name: next((whole for size, whole in OF.items() if size in name), OF["base"])
    for family in ("finetuning", "probing", "partial", "scratch", "segmentation")
    for name in recipe.families().get(family, [])
} | {name: name.replace("probe", "mae").replace("finetune", "mae") for name in recipe.families()["small"]}
OWN |= {f"{task}_{of}": own for of, own in OTHERS.items() for task in ("probe", "finetune")}
PAPERS = [name for family in ("pretraining", "finetuning", "probing", "scratch") for name in recipe.families()[family]]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 and 3 noisy pictures of two classes, with a map of which half is which."""
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    half = np.repeat(np.array([[0] * 20 + [1] * 20], np.uint8), 40, axis=0)
    for split, count in (("train", 8), ("val", 3)):
        for number in range(count):
            pixels = draw.integers(0, 256, (40, 40, 3)).astype(np.uint8)
            for kind, picture in (("images", pixels), ("maps", half)):
                path = folder / kind / split / "ab"[number % 2] / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
    build(folder / "images", folder / "shards", catalog=Catalog(), workers=1, maps=folder / "maps")
    return folder / "shards"


def narrow(name: str, depth: int = 2) -> list[str]:
    """Changes that make a pretraining recipe's networks small."""
    loaded = recipe.load(name)
    assert isinstance(loaded, recipe.Pretrain)
    widths = [f"{part}.width={4 * getattr(loaded, part).heads}" for part in ("encoder", "decoder")]
    return [*widths, f"encoder.depth={depth}", "decoder.depth=1"]


@pytest.fixture(scope="module")
def encoders(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, tuple[str, ...]], Path]:
    """Run folders as pretraining leaves them, by recipe and changes; made where they are asked for."""

    class Folders(dict):
        def __missing__(self, key: tuple[str, tuple[str, ...]]) -> Path:
            self[key] = folder = tmp_path_factory.mktemp("run")
            loaded = recipe.load(key[0], key[1])
            assert isinstance(loaded, recipe.Pretrain)
            save_file(Pretraining.from_recipe(loaded, Catalog()).encoder.state_dict(), folder / "encoder.safetensors")
            (folder / "recipe.json").write_text(loaded.model_dump_json())
            (folder / "run.json").write_text(json.dumps({"task": "pretrain", "shards": str(shards)}))
            return folder

    return Folders()


def command(name: str, changes: list[str], shards: Path, out: Path, encoders: dict) -> list[str]:
    """What runs a recipe for two steps; ``changes`` are those of the encoder."""
    loaded, given = recipe.load(name), list(SHORT)
    if loaded.task == "pretrain":
        begin, given = ["pretrain", name], given + changes
    elif loaded.task == "tokenizer":
        begin, given = ["tokenizer", "train", name], [*given, "tokenizer.width=4"]
    else:
        whole = OWN[name]
        shape = whole if name.startswith("scratch") else str(encoders[whole, tuple(changes)])
        begin = [loaded.task, shape, "--recipe", name, *(["--from-scratch"] if shape == whole else [])]
        given += ["eval_every_epochs=1.0", *(["labels_per_class=4"] if loaded.labels_per_class else [])]
    settings = [word for change in given for word in ("--set", change)]
    return [*begin, "--shards", str(shards), "--out", str(out), *settings]


def run_it(name: str, changes: list[str], shards: Path, out: Path, encoders: dict) -> None:
    done = CliRunner().invoke(cli._group, command(name, changes, shards, out, encoders), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    steps = losses(out)
    if name == "knn":  # nothing is trained
        assert steps == {}
    else:
        assert sorted(steps) == [1, 2]
        assert all(np.isfinite(loss) for loss in steps.values())


@pytest.mark.parametrize("name", recipe.names())
def test_every_recipe_makes_two_steps(name: str, shards: Path, tmp_path: Path, encoders: dict) -> None:
    of = name if recipe.load(name).task == "pretrain" else OWN.get(name)
    blocks = int(getattr(recipe.load(name), "tune_blocks", None) or 0)
    run_it(name, narrow(of, max(2, blocks)) if of else [], shards, tmp_path / "run", encoders)
