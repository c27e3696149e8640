"""Pictures of reconstructions, and ``reconstruct``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mae_pipe import pictures, recipe
from mae_pipe.catalog import Catalog
from mae_pipe.errors import DataError, DiskError, MaePipeError, PluginError, RecipeError, RunError
from mae_pipe.reconstructing import COUNT, RunPictures, fixed, given, load, reconstruct, strips_of
from mae_pipe.runs import Run
from mae_pipe.sharding import build
from mae_pipe.tasks import MaskedAutoencoder
from mae_pipe.weights import entry_of

CATALOG = Catalog()
STEP = 7


def tiny(**changes: Any) -> recipe.Pretrain:
    values = {
        "task": "pretrain",
        "data": {"size": 24, "workers": 0},
        "encoder": {"width": 16, "depth": 1, "heads": 2, "patch": 4},
        "decoder": {"width": 16, "depth": 1, "heads": 2},
        "target": {"name": "normalized_pixel"},
    }
    parsed = recipe.parse({**values, **changes}, "tiny")
    assert isinstance(parsed, recipe.Pretrain)
    return parsed


def write_run(folder: Path, chosen: recipe.Pretrain) -> Path:
    """A run folder with weights that were never trained."""
    folder.mkdir()
    (folder / "recipe.json").write_text(chosen.model_dump_json())
    weights = MaskedAutoencoder.from_recipe(chosen, CATALOG).state_dict()
    metadata = {"step": STEP, "recipe": chosen.model_dump(mode="json")}
    Run(folder).save_weights("model.safetensors", map(entry_of, weights, weights.values()), metadata)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", tiny())


@pytest.fixture(scope="module")
def shards(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "shards"
    build(image_folder, out, catalog=CATALOG, workers=1, splits=("val=0.5",))
    return out


def strip(value: int, name: str = "", side: int = 8) -> pictures.Strip:
    def even(level: int) -> pictures.Pixels:
        return np.full((side, side, 3), level, np.uint8)

    return pictures.Strip(even(value), even(value + 1), even(value + 2), even(value + 3), name)


@pytest.mark.parametrize("count", [1, 4, 5, 9])
def test_a_saved_picture_gives_its_tiles_back(tmp_path: Path, count: int) -> None:
    path = tmp_path / "deep" / "grid.png"
    pictures.save(pictures.draw([strip(10 * n, f"image {n}") for n in range(count)], title="T", footer="F"), path)
    cut = pictures.tiles(path)
    assert [np.asarray(tile).tolist() for tile in cut["prediction"]] == [
        np.full((8, 8, 3), 10 * n + 2).tolist() for n in range(count)
    ]
    assert {stage: len(found) for stage, found in cut.items()} == dict.fromkeys(pictures.STAGES, count)
    assert pictures.footer_of(path) == "F"


def test_the_same_strips_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        pictures.save(pictures.draw([strip(1, "x")], title="T", footer="a footer"), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_labels_are_there_and_long_ones_stay_on_the_page() -> None:
    bare = pictures.draw([strip(0)])
    named = pictures.draw([strip(0, "n" * 400)], title="t" * 400, footer="a long footer " * 40 + "f" * 400)
    assert named.width == bare.width
    assert named.height > bare.height
    margin = np.asarray(named)[:, -pictures.MARGIN + 2 :]
    assert (margin == 255).all()  # nothing runs over the edge


def test_hidden_pixels_become_grey_and_visible_ones_stay() -> None:
    hidden = np.eye(4, dtype=bool)
    shown = pictures.hide(np.zeros((4, 4, 3), np.uint8), hidden)
    assert (shown[hidden] == pictures.HIDDEN).all()
    assert (shown[~hidden] == 0).all()


@pytest.mark.parametrize("content", [b"", b"no picture", "plain"])
def test_a_foreign_picture_is_refused_by_name(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "step-0000001.png"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(RunError, match=r"step-0000001\.png is not a picture that mae-pipe drew"):
        pictures.tiles(path)


def test_a_picture_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="cannot write to"):
        pictures.save(pictures.draw([strip(0)]), tmp_path / "file" / "grid.png")


def test_files_and_shards_are_drawn_together(run: Path, shards: Path, image_folder: Path, tmp_path: Path) -> None:
    files = sorted(image_folder.rglob("*.*"))[:3]
    out = reconstruct(run, files, tmp_path / "grid.png", catalog=CATALOG, shards=shards, count=2)
    cut = pictures.tiles(out)
    assert len(cut["input"]) == 5
    for path, tile in zip(files, cut["input"], strict=False):
        pixels = given([path], tiny().data)[0].pixels[0].permute(1, 2, 0).numpy()
        assert np.abs(np.asarray(tile).astype(int) - pixels).max() == 0
    assert "the mean and deviation of the original patch" in pictures.footer_of(out)
    with Image.open(out) as page:
        assert json.loads(page.info[pictures.CHUNK])["title"] == f"run, step {STEP}"


def test_pasted_is_the_prediction_where_hidden_and_the_input_elsewhere(run: Path, shards: Path) -> None:
    chosen, task, step = load(run, CATALOG)
    batch, _ = fixed(shards, "train", chosen.data, 3, CATALOG)
    made = task.reconstruct(batch)
    assert step == STEP
    for number, drawn in enumerate(strips_of(made, chosen)):
        cells = made.mask.as_map()[number].reshape(6, 6).numpy()
        hidden = np.kron(cells, np.ones((4, 4))).astype(bool)
        assert (drawn.pasted[hidden] == drawn.prediction[hidden]).all()
        assert (drawn.pasted[~hidden] == drawn.input[~hidden]).all()
        assert (drawn.masked[hidden] == pictures.HIDDEN).all()
        assert (drawn.masked[~hidden] == drawn.input[~hidden]).all()
        assert (drawn.input == batch.pixels[number].permute(1, 2, 0).numpy()).all()


def hidden_by(run: Path, shards: Path, **changes: Any) -> torch.Tensor:
    chosen, task, _ = load(run, CATALOG, **changes)
    return task.reconstruct(fixed(shards, "train", chosen.data, 4, CATALOG)[0]).mask.as_map()


def test_ratio_seed_and_mask_change_what_is_hidden(run: Path, shards: Path) -> None:
    plain = hidden_by(run, shards)
    assert plain.sum(1).tolist() == [27] * 4  # of 36
    assert hidden_by(run, shards, ratio=0.5).sum(1).tolist() == [18] * 4
    assert (hidden_by(run, shards) == plain).all()
    assert (hidden_by(run, shards, seed=1) != plain).any()
    assert (hidden_by(run, shards, mask="block") != plain).any()


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("gone.jpg", None, "No such file"),
        ("empty.png", b"", "zero bytes"),
        ("words.jpg", b"words, not pixels", "not an image"),
    ],
)
def test_a_bad_image_is_named_in_one_sentence(
    run: Path, tmp_path: Path, name: str, content: bytes | None, why: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=why) as caught:
        reconstruct(run, [tmp_path / name], tmp_path / "grid.png", catalog=CATALOG)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "grid.png").exists()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"mask": "blokc"}, PluginError, "did you mean 'block'"),
        ({"ratio": 1.5}, RecipeError, "mask.ratio"),
        ({"ratio": 0.99}, MaePipeError, "none of 36 patches"),
    ],
)
def test_a_wrong_wish_is_one_sentence(
    run: Path, shards: Path, tmp_path: Path, changes: dict[str, Any], error: type[MaePipeError], words: str
) -> None:
    with pytest.raises(error, match=words):
        reconstruct(run, (), tmp_path / "grid.png", catalog=CATALOG, shards=shards, **changes)


def test_a_run_without_fitting_weights_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to reconstruct"):
        reconstruct(run, (), tmp_path / "grid.png", catalog=CATALOG)
    with pytest.raises(RunError, match="not a run folder"):
        load(tmp_path / "nowhere", CATALOG)
    probe = tmp_path / "probe"
    probe.mkdir()
    (probe / "recipe.json").write_text(recipe.Downstream(task="probe").model_dump_json())
    with pytest.raises(RunError, match="is a probe run"):
        load(probe, CATALOG)
    other = write_run(tmp_path / "other", tiny(encoder={"width": 32, "depth": 1, "heads": 2, "patch": 4}))
    (other / "recipe.json").write_text(tiny().model_dump_json())
    with pytest.raises(RunError, match="does not hold the weights of this run's recipe"):
        load(other, CATALOG)
    (other / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match="does not hold the weights"):
        load(other, CATALOG)
    (other / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"has no model\.safetensors yet"):
        load(other, CATALOG)


class Engine:
    """What ``RunPictures`` uses of the engine."""

    device = torch.device("cpu")

    def __init__(self, task: MaskedAutoencoder) -> None:
        self.task, self.training = task, True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        assert not self.training
        assert not torch.is_grad_enabled()
        return self.task(*args, **kwargs)

    def train(self, mode: bool = True) -> None:
        self.training = mode


def test_a_run_draws_the_same_images_at_the_start_every_so_often_and_at_the_end(shards: Path, tmp_path: Path) -> None:
    chosen = tiny()
    engine: Any = Engine(MaskedAutoencoder.from_recipe(chosen, CATALOG))
    draw = RunPictures.of(tmp_path, shards, chosen, CATALOG, every=4, last=9)
    for step in range(10):
        draw(step, engine)
        assert engine.training
    found = sorted((tmp_path / "pictures").iterdir())
    assert [path.stem for path in found] == ["step-0000000", "step-0000004", "step-0000008", "step-0000009"]
    first, last = pictures.tiles(found[0]), pictures.tiles(found[-1])
    assert len(first["input"]) == COUNT
    for stage in ("input", "masked", "prediction"):  # the weights never changed
        assert [np.asarray(a).tolist() for a in first[stage]] == [np.asarray(b).tolist() for b in last[stage]]


def test_pictures_that_cannot_be_written_are_named_and_do_not_end_a_run(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = tiny()
    engine: Any = Engine(MaskedAutoencoder.from_recipe(chosen, CATALOG))
    draw = RunPictures.of(tmp_path, shards, chosen, CATALOG, every=1, last=2)
    (tmp_path / "pictures").write_text("a file in the way")
    draw(1, engine)
    (tmp_path / "pictures").unlink()
    draw(2, engine)
    assert [path.stem for path in (tmp_path / "pictures").iterdir()] == ["step-0000002"]
    (said,) = capsys.readouterr().err.splitlines()
    assert "step-0000001.png could not be written, and training goes on: " in said


def test_only_one_rank_writes_pictures(shards: Path, tmp_path: Path) -> None:
    chosen = tiny()
    engine: Any = Engine(MaskedAutoencoder.from_recipe(chosen, CATALOG))
    RunPictures.of(tmp_path, shards, chosen, CATALOG, every=1, last=1, active=False)(1, engine)
    assert not (tmp_path / "pictures").exists()
