"""DINO's runs: the same by any ranks, micro-batches and ZeRO stage; a stopped one goes on exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.checkpoints import Archive
from mae_pipe.errors import MaePipeError, RecipeError, Stopped
from mae_pipe.pretraining import pretrain
from mae_pipe.sharding import build
from tests.nursing import call
from tests.tiny import losses
from tests.workers import ways

RECIPE = """
task = "pretrain"
[data]
size = 16
global_batch = 8
micro_batch = 4
workers = 0
[method]
name = "dino"
[method.options]
out = 64
hidden = 32
bottleneck = 16
local_crops = 3
local_size = 8
momentum = 0.9
frozen_epochs = 1.0
teacher_warmup_epochs = 1.0
[encoder]
width = 32
depth = 2
heads = 2
patch = 4
positions = "learned"
[optimizer]
base_lr = 0.01
weight_decay = 0.04
weight_decay_end = 0.4
clip = 3.0
[schedule]
epochs = 2.0
warmup_epochs = 1.0
[engine]
precision = "fp32"
[saving]
every_epochs = 1.0
keep_last = 9
[logging]
every_steps = 1
"""


@pytest.fixture(scope="module")
def tiny(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe of 3 steps an epoch, and shards."""
    folder = tmp_path_factory.mktemp("dino")
    (folder / "dino.toml").write_text(RECIPE)
    build(image_folder, folder / "shards", catalog=Catalog(), workers=1, per_shard=100)
    return folder


def run(tiny: Path, out: Path, *changes: str, **more: Any) -> Archive:
    """The last checkpoint of a run."""
    made = recipe.load(str(tiny / "dino.toml"), changes)
    assert isinstance(made, recipe.Pretrain)
    pretrain(made, tiny / "shards", out, catalog=Catalog(), **more)
    return last(out)


def last(out: Path) -> Archive:
    return Archive.of(sorted((out / "checkpoints").iterdir())[-1])


def test_neither_ranks_nor_micro_batches_nor_stages_change_what_is_learned(tiny: Path, tmp_path: Path) -> None:
    others = ("1.2.4", "2.1.4", "2.2.2")
    call(ways, tiny / "dino.toml", tiny / "shards", tmp_path, "1.1.8", *others)
    expected, loss = last(tmp_path / "1.1.8").weights(), losses(tmp_path / "1.1.8")
    assert len(loss) == 6
    assert float(expected["sharpened.centre"].std()) > 1e-3
    for way in others:
        found = last(tmp_path / way).weights()
        assert losses(tmp_path / way) == pytest.approx(loss, rel=1e-5), way
        assert not found["sharpened.pending"].any()
        for name, tensor in expected.items():
            assert torch.allclose(found[name], tensor, rtol=0, atol=1e-5), (way, name)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stopped_run_goes_on_exactly(tiny: Path, tmp_path: Path, precision: str) -> None:
    changes = (f"engine.precision={precision}", "encoder.drop_path=0.2")
    whole = run(tiny, tmp_path / "whole", *changes)

    def stop(step: int, batch: Any, loss: Any) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, Stopped, MaePipeError)):
        run(tiny, tmp_path / "halves", *changes, seen=stop)
    assert losses(tmp_path / "halves").keys() < losses(tmp_path / "whole").keys()
    halves = run(tiny, tmp_path / "halves", *changes)
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole")
    expected, found = whole.weights(), halves.weights()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    published = load_file(tmp_path / "halves" / "encoder.safetensors")
    assert all(torch.equal(tensor, found[f"teacher.part.{name}"]) for name, tensor in published.items())
    early = Archive.of(tmp_path / "halves" / "checkpoints" / "step-0000003").weights()
    assert torch.equal(early["head.prototypes"], early["teacher_head.part.prototypes"])  # held back for an epoch
    assert not torch.equal(early["head.prototypes"], found["head.prototypes"])
    assert {t.dtype for n, t in found.items() if n.startswith("teacher")} == {torch.float32}


def test_a_teacher_in_pieces_is_refused_in_words(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'dino' has a part that follows.*set engine\.zero to 2 or less"):
        run(tiny, tmp_path / "run", "engine.zero=3")
