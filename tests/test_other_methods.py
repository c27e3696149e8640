"""Commands that look at runs and recipes, of a method that is no masked autoencoder: they work, or say why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from mae_pipe import cli, recipe
from mae_pipe.catalog import Catalog
from mae_pipe.costs import costs
from mae_pipe.errors import DataError, RecipeError, RunError
from mae_pipe.sharding import build
from tests.test_method import FOLLOWER
from tests.test_supervised import pretrained

NUMERIC = """
from mae_pipe.api import Method, plugin
@plugin("numeric")
class Numeric(Method):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
    def loss(self, batch):
        tokens = self.encoder(self.images_of(batch)[0])
        return tokens.mean() if float(tokens.sum()) > 0 else tokens.std()
"""


def done(*words: str) -> str:
    result = CliRunner().invoke(cli._group, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def home(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, shards, and the run of it."""
    folder = tmp_path_factory.mktemp("home")
    build(image_folder, folder / "shards", catalog=Catalog(), workers=1)
    pretrained(folder, folder / "shards")
    return folder


def test_its_arithmetic_is_counted_as_by_hand(home: Path) -> None:
    chosen = recipe.load(str(home / "mine.toml"))
    assert isinstance(chosen, recipe.Pretrain)
    found = costs(chosen, Catalog())
    tokens, width, hidden = 17, 32, 128
    block = 2 * tokens * width * (4 * width + 2 * hidden) + 4 * tokens**2 * width
    assert found.forward == 2 * block + 2 * 16 * 48 * width + 2 * width * 1000  # classes of ImageNet, without shards
    assert found.training == pytest.approx(3 * found.forward, rel=0.05)  # images need no gradient
    weights = load_file(home / "run" / "encoder.safetensors")
    assert found.encoder_parameters == sum(w.numel() for n, w in weights.items() if n != "pos_embed")
    assert found.decoder_parameters == 33 * 1000
    said = done("plan", str(home / "mine.toml"))
    assert "beside it 33,000" in said
    assert "decoder" not in said


def test_memory_is_planned_and_a_teacher_rules_zero_3_out(home: Path) -> None:
    command = ["plan", str(home / "mine.toml"), "--gpus", "2", "--json"]
    plan = json.loads(done(*command))
    assert {row["zero"] for row in plan["settings"]} == {1, 2, 3}
    assert plan["given"]["activations"] > 0
    follower = ["--set", "method.name=follower", *(w for file in FOLLOWER.files for w in ("--plugin", str(file)))]
    other = json.loads(done(*command, *follower))
    assert {row["zero"] for row in other["settings"]} == {1, 2}
    assert other["model"]["others"] > plan["model"]["others"] + 4 * plan["model"]["encoder"] * 0.9  # the teacher
    assert other["model"]["forward"] > 1.5 * plan["model"]["forward"]  # two views, and a teacher
    assert other["model"]["blocks"] == plan["model"]["blocks"] == 2


def test_small_views_in_other_colours_are_counted(home: Path) -> None:
    def forward(crops: int) -> int:
        options = {"out": 16, "hidden": 8, "bottleneck": 4, "local_size": 8, "local_crops": crops}
        chosen = recipe.load(
            str(home / "mine.toml"),
            ["method.name=dino", *(f"method.options.{name}={value}" for name, value in options.items())],
        )
        assert isinstance(chosen, recipe.Pretrain)
        return costs(chosen, Catalog()).forward

    tokens, width, hidden = 5, 32, 128
    block = 2 * tokens * width * (4 * width + 2 * hidden) + 4 * tokens**2 * width
    head = 2 * (width * 8 + 8 * 8 + 8 * 4 + 4 * 16)
    assert forward(3) - forward(1) == 2 * (2 * block + 2 * 4 * 48 * width + head)


def test_a_loss_that_needs_numbers_cannot_be_planned(home: Path, tmp_path: Path) -> None:
    (tmp_path / "numeric.py").write_text(NUMERIC)
    with pytest.raises(
        RecipeError, match=r"Numeric cannot be counted on shapes alone .*; measure it with mae-pipe tune"
    ):
        done("plan", str(home / "mine.toml"), "--plugin", str(tmp_path / "numeric.py"), "--set", "method.name=numeric")


def test_recipes_and_runs_are_checked(home: Path, tmp_path: Path) -> None:
    said = done("check", str(home / "mine.toml"))
    assert "every trainable parameter is part of the loss" in said
    assert f"the run {home / 'run'} at step 3, on images of" in done("check", str(home / "run")).replace("\n", "")
    moved = tmp_path / "run"
    moved.mkdir()
    for name in ("recipe.json", "model.safetensors"):
        (moved / name).write_bytes((home / "run" / name).read_bytes())
    about = json.loads((home / "run" / "run.json").read_text())
    (moved / "run.json").write_text(json.dumps(about | {"shards": str(tmp_path / "gone")}))
    with pytest.raises(RunError, match="it learned their classes; give --shards"):
        done("check", str(moved))
    assert "step 3" in done("check", str(moved), "--shards", str(home / "shards"))


def test_unlabelled_shards_are_no_ground_for_a_check(home: Path, image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    for path in image_folder.rglob("*.png"):
        (tmp_path / "flat" / path.name).write_bytes(path.read_bytes())
    build(tmp_path / "flat", tmp_path / "shards", catalog=Catalog(), workers=1)
    with pytest.raises(DataError, match="learns from labels"):
        done("check", str(home / "mine.toml"), "--shards", str(tmp_path / "shards"))


def test_there_is_nothing_to_reconstruct(home: Path, image_folder: Path, tmp_path: Path) -> None:
    image = str(next(image_folder.rglob("*.png")))
    with pytest.raises(RunError, match="'supervised', which predicts no patches; give a run of mae or beit"):
        done("reconstruct", str(home / "run"), image, "--out", str(tmp_path / "out.png"))


@pytest.mark.parametrize(("form", "file"), [("official", ""), ("timm", "model.safetensors")])
def test_the_encoder_alone_is_exported(home: Path, tmp_path: Path, form: str, file: str) -> None:
    out = tmp_path / form
    said = done("export", str(home / "run"), "--to", form, "--out", str(out))
    found = load_file(out / file) if file else torch.load(out, weights_only=True)["model"]
    published = load_file(home / "run" / "encoder.safetensors")
    assert found.keys() == published.keys()
    assert all(torch.equal(found[name], published[name]) for name in published)
    assert ("the encoder alone was written: it was pretrained by 'supervised'" in said) == (form == "official")


def test_it_is_reported(home: Path) -> None:
    done("report", str(home / "run"))
    assert "supervised" in (home / "run" / "report.html").read_text()


@pytest.mark.slow
def test_it_is_tuned(home: Path, tmp_path: Path) -> None:
    words = ["--shards", str(home / "shards"), "--minutes", "0.01", "--out", str(tmp_path / "tuned.toml")]
    assert "images/s" in done("tune", str(home / "mine.toml"), *words)
    tuned = recipe.load(str(tmp_path / "tuned.toml"))
    assert isinstance(tuned, recipe.Pretrain)
    assert tuned.method.options["mixup"] == 0.8
