"""Segmentation with tokens of several blocks, measured on whole images: whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mae_pipe import optim, recipe, segmented
from mae_pipe.autoencoder import build_encoder
from mae_pipe.catalog import Catalog
from mae_pipe.classification import Classification, read_weights
from mae_pipe.downstream import downstream
from mae_pipe.errors import RecipeError
from mae_pipe.sharding import build
from mae_pipe.tasks import MaskedAutoencoder

MAE = recipe.Pretrain(
    data=recipe.Data(size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), centre_share=1.0),
    encoder=recipe.EncoderShape(width=32, depth=4, heads=2, patch=4),
    decoder=recipe.DecoderShape(width=16, depth=1, heads=2),
)
CHANGES = (
    *("data.size=16", "data.global_batch=8", "data.workers=0", "data.jitter=[0.0, 0.0, 0.0, 0.0]"),
    *("engine.precision=fp32", "drop_path=0", "optimizer.base_lr=0.05", "schedule.epochs=8", "logging.every_steps=5"),
    *("head.options.hidden=16", "head.options.blocks=[0, 1, 2, 3]", "sliding.stride=[11, 8]", "sliding.short_side=20"),
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as pretraining leaves it, and beside it images of several sizes with a bright half, and maps."""
    draw = np.random.default_rng(3)
    for split, count in (("train", 24), ("val", 7)):
        for number in range(count):
            height, width = draw.integers(18, 40, 2)
            numbers = np.zeros((height, width), np.uint8)
            numbers[(slice(None), slice(width // 2, None)) if number % 2 else slice(height // 2, None)] = 1
            numbers[0] = 255
            pixels = 60 + 120 * (numbers == 1)[..., None] + draw.integers(0, 40, (height, width, 3))
            for kind, picture in (("images", pixels.astype(np.uint8)), ("maps", numbers)):
                path = tmp_path / kind / split / ("across" if number % 2 else "down") / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
    build(tmp_path / "images", tmp_path / "shards", catalog=Catalog(), workers=1, maps=tmp_path / "maps")
    folder = tmp_path / "run"
    folder.mkdir()
    save_file(MaskedAutoencoder.from_recipe(MAE, Catalog()).encoder.state_dict(), folder / "encoder.safetensors")
    (folder / "recipe.json").write_text(MAE.model_dump_json())
    (folder / "run.json").write_text(json.dumps({"task": "pretrain", "shards": str(tmp_path / "shards")}))
    return folder


def chosen(*changes: str) -> recipe.Downstream:
    loaded = recipe.load("finetune_ade20k", [*CHANGES, *changes])
    assert isinstance(loaded, recipe.Downstream)
    return loaded


def directly(folder: Path, run: Path) -> float:
    """The mIoU of the saved model on whole images, window by window."""
    settings = recipe.parse(json.loads((folder / "recipe.json").read_text()), "it")
    assert isinstance(settings, recipe.Downstream)
    task = Classification.from_recipe(settings, MAE, read_weights(run)[0], Catalog(), classes=2)
    task.load_state_dict(load_file(folder / "model.safetensors"))
    task.eval()
    matrix = np.zeros((2, 2))
    mean, std = (torch.tensor(values)[:, None, None] for values in (MAE.data.mean, MAE.data.std))
    for path in sorted((run.parent / "images").glob("val/*/*.png")):
        map_ = run.parent / "maps" / path.relative_to(run.parent / "images")
        image, truth = Image.open(path).convert("RGB"), np.asarray(Image.open(map_))
        scale = 20 / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        pixels = (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 - mean) / std
        sums, seen = torch.zeros(2, *pixels.shape[1:]), torch.zeros(pixels.shape[1:])
        for top in {min(at, pixels.shape[1] - 16) for at in range(0, pixels.shape[1], 11)}:
            for left in {min(at, pixels.shape[2] - 16) for at in range(0, pixels.shape[2], 8)}:
                with torch.no_grad():
                    window = pixels[None, :, top : top + 16, left : left + 16]
                    sums[:, top : top + 16, left : left + 16] += task.head(task.tokens_of(window))[0]
                seen[top : top + 16, left : left + 16] += 1
        scores = torch.nn.functional.interpolate((sums / seen)[None], truth.shape, mode="bilinear")
        np.add.at(matrix, (truth[truth != 255], scores[0].argmax(0).numpy()[truth != 255]), 1)
    return float((matrix.diagonal() / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())).mean())


def test_finetuning_on_four_blocks_learns_and_reports_the_miou_of_whole_images(run: Path) -> None:
    result = downstream(run, chosen(), catalog=Catalog())
    assert result.metrics["miou"] == pytest.approx(directly(result.folder, run), abs=2e-4)
    assert result.metrics["miou"] > 0.6
    assert {"loss", "centre_miou", "miou", "mean_accuracy", "pixel_accuracy"} <= set(result.metrics)
    rows = [json.loads(row) for row in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["miou"] == result.metrics["miou"]
    (path,) = (result.folder / "pictures").iterdir()
    assert path.name == "segmentation-0000024.png"
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    for colour in segmented.palette(2)[[0, 1, 255]]:
        assert (pixels == colour).all(-1).any(), "both classes and what does not count are there"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (("head.options.blocks=[0, 1, 2, 4]",), r"must rise and be of the encoder's, 0 to 3"),
        (("head.options.blocks=[0, 2, 1, 3]",), r"must rise and be of the encoder's, 0 to 3"),
        (("head.options.blocks=[0, 0, 1, 2]",), r"must rise"),
        (("sliding.stride=17",), r"sliding.stride 17 is more than data.size 16"),
        (("head.name=linear",), r"sliding windows measure miou, .* but the head 'linear' says top1"),
    ],
)
def test_what_does_not_fit_is_a_sentence_and_leaves_nothing(changes: tuple[str, ...], says: str, run: Path) -> None:
    kept = CHANGES if changes[0] != "head.name=linear" else [c for c in CHANGES if not c.startswith("head.")]
    settings = recipe.load("finetune_ade20k", [*kept, *changes])
    assert isinstance(settings, recipe.Downstream)
    with pytest.raises(RecipeError, match=says) as caught:
        downstream(run, settings, catalog=Catalog())
    assert "\n" not in str(caught.value)
    assert {path.name for path in run.iterdir()} == {"encoder.safetensors", "recipe.json", "run.json"}


def test_the_encoder_gives_the_tokens_after_the_blocks_that_are_named() -> None:
    encoder, images, seen = build_encoder(MAE.encoder, 16).eval(), torch.randn(2, 3, 16, 16), []
    for block in encoder.blocks:
        block.register_forward_hook(lambda module, given, out: seen.append(out))
    whole = encoder(images)
    found = encoder.after_blocks(images, (0, 3))
    assert torch.equal(found, torch.stack([seen[0], seen[3]], dim=1))
    assert torch.equal(encoder.norm(found[:, 1]), whole)


@pytest.mark.parametrize(("step", "lr"), [(0, 0.0), (750, 1e-4 * 0.5 * (1 - 750 / 160000)), (80000, 5e-5), (160000, 0)])
def test_the_recipe_of_ade20k_falls_in_a_straight_line_as_poly_does(step: int, lr: float) -> None:
    plan = optim.Plan.of(recipe.load("finetune_ade20k"), 20210, 1)
    assert plan.steps == 160000
    assert plan.lr(step) == pytest.approx(lr, rel=1e-4, abs=1e-9)


def test_a_picture_shows_truth_and_prediction_in_the_colours_of_its_legend() -> None:
    truth = np.zeros((1, 8, 8), np.int64)
    truth[0, :4], truth[0, 7] = 2, 255
    guess, images = np.full((1, 8, 8), 1), np.full((1, 8, 8, 3), 77, np.uint8)
    page = np.asarray(segmented.drawn(images, truth, guess, ["sky", "sea", "sand"]))
    colours, side = segmented.palette(3), 28 * 8
    left, top = segmented.MARGIN, segmented.MARGIN + segmented.HEADER
    tiles = [page[top : top + side, at : at + side] for at in range(left, left + 3 * side, side + segmented.GAP)]
    assert (tiles[0] == 77).all()
    assert np.array_equal(tiles[1][::28, ::28], colours[truth[0]])
    assert np.array_equal(tiles[2][::28, ::28], colours[np.where(truth[0] == 255, 255, 1)])
    below = page[top + side + segmented.GAP :]
    assert all((below == colours[number]).all(-1).any() for number in (0, 1, 2))


def test_no_two_classes_of_ade20k_have_one_colour() -> None:
    table = segmented.palette(150)
    assert len({tuple(colour) for colour in table[[*range(150), 255]].tolist()}) == 151
