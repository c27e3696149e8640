"""BEiT: loss, mask and first weights are the official ones; a run goes on exactly, and is probed and finetuned."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from mae_pipe import cli, pictures, recipe
from mae_pipe.building import build as build_method
from mae_pipe.catalog import Catalog
from mae_pipe.contracts import Grid
from mae_pipe.data.batch import Batch
from mae_pipe.errors import MaePipeError, PluginError, RecipeError, RunError
from mae_pipe.masking import Mask, visible_count
from mae_pipe.pixels import normalise
from mae_pipe.positions import BIAS
from mae_pipe.pretraining import pretrain
from mae_pipe.rng import Rng
from mae_pipe.sharding import build
from tests.small_runs import settings, small_tokenizer
from tests.tiny import losses

CATALOG = Catalog()
RECIPE = """
task = "pretrain"
[data]
size = 32
global_batch = 8
micro_batch = 4
workers = 0
[method]
name = "beit"
[encoder]
width = 32
depth = 2
heads = 2
patch = 4
mask_tokens = true
positions = "relative"
layer_scale = 0.1
[mask]
name = "beit"
ratio = 0.3826
[target]
name = "dvae"
options = {{ tokenizer = "{tokenizer}" }}
[optimizer]
base_lr = 0.01
[schedule]
epochs = 2.0
warmup_epochs = 1.0
[engine]
precision = "fp32"
[saving]
every_epochs = 1.0
[logging]
every_steps = 1
"""


@pytest.fixture(scope="module")
def tiny(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe of 3 steps an epoch, and shards."""
    folder = tmp_path_factory.mktemp("beit")
    (folder / "beit.toml").write_text(RECIPE.format(tokenizer=small_tokenizer(folder / "tokenizer")))
    build(image_folder, folder / "shards", catalog=CATALOG, workers=1, per_shard=100)
    return folder


def method_of(tiny: Path, *changes: str) -> Any:
    made = recipe.load(str(tiny / "beit.toml"), changes)
    assert isinstance(made, recipe.Pretrain)
    return build_method(made, CATALOG)


def test_the_loss_is_the_cross_entropy_of_hidden_tokens(tiny: Path) -> None:
    """The float64 formula, image by image and patch by patch, of tokens that stand in the grid's order."""
    method = method_of(tiny).eval()
    torch.manual_seed(0)
    method.encoder.rel_pos_bias.relative_position_bias_table.data.normal_()
    pixels, numbers = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8), torch.arange(3)
    batch = Batch(pixels, numbers, numbers, numbers + 5)
    found = method(batch)
    images = normalise(pixels, method.view.mean, method.view.std)
    scores = method.sampler.scores(images, method.view.grid, method.rng(batch, "mask"))
    mask, truth = Mask.from_scores(scores, 0.3826), method.target.truth(images)
    tokens = method.encoder(images, mask)[:, 1:].gather(1, mask.restore[:, :, None].expand(-1, -1, 32)).double()
    weight, bias = method.head.weight.detach().double(), method.head.bias.detach().double()
    terms = []
    for image in range(3):
        for patch in scores[image].argsort()[64 - 25 :].tolist():
            logits = (weight @ tokens[image, patch] + bias).tolist()
            terms.append(math.log(sum(map(math.exp, logits))) - logits[int(truth[image, patch])])
    assert len(terms) == 75
    assert float(found.detach()) == pytest.approx(sum(terms) / 75, abs=1e-5)


def test_a_picture_is_of_the_tokens_in_their_places(tiny: Path) -> None:
    """A head that says 7 at one patch and 3 at all others: the tokenizer's picture of just that."""
    method = method_of(tiny).eval()
    pixels, numbers = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), torch.arange(2)
    batch = Batch(pixels, numbers, numbers, numbers + 5)
    place = method.reconstruct(batch).mask.hidden[0, 4]
    wanted = torch.full((2, 64), 3)
    wanted[0, place] = 7

    class Says(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(wanted, method.target.width).float()

    method.head = Says()
    found = method.reconstruct(batch)
    assert torch.equal(found.mask.order, method.reconstruct(batch).mask.order)
    said = method.target.picture(torch.nn.functional.one_hot(wanted, method.target.width).float(), found.images)
    assert torch.equal(found.picture, said)
    assert not method.training


def test_what_a_run_predicts_is_drawn(tiny: Path, tmp_path: Path) -> None:
    run("pretrain", tiny / "beit.toml", "--shards", tiny / "shards", "--out", tmp_path / "run")
    found = sorted(path.stem for path in (tmp_path / "run" / "pictures").iterdir())
    assert found == ["step-0000000", "step-0000006"]
    first, last = (pictures.tiles(tmp_path / "run" / "pictures" / f"{name}.png") for name in found)
    assert first["input"][0].tobytes() == last["input"][0].tobytes()
    assert first["prediction"][0].tobytes() != last["prediction"][0].tobytes()
    run(
        "reconstruct", tmp_path / "run", "--shards", tiny / "shards", "--split", "train", "--out", tmp_path / "grid.png"
    )
    assert len(pictures.tiles(tmp_path / "grid.png")["prediction"]) == 8


def test_only_what_is_hidden_is_hidden(tiny: Path) -> None:
    """What lies under a mask token changes nothing of what the encoder says; the other patches do."""
    method = method_of(tiny).eval()
    images, mask = torch.randn(1, 3, 32, 32), Mask.from_scores(torch.arange(64.0)[None], 0.3826)
    hidden = mask.as_map().view(1, 1, 8, 1, 8, 1).expand(1, 3, 8, 4, 8, 4).reshape(1, 3, 32, 32)
    usual = method.encoder(images, mask)
    assert torch.equal(method.encoder(images.masked_fill(hidden, 9.0), mask), usual)
    assert not torch.allclose(method.encoder(images.masked_fill(~hidden, 9.0), mask), usual)


def test_first_weights_are_the_official_ones(tiny: Path) -> None:
    method = method_of(tiny, "encoder.width=128", "encoder.depth=3")
    blocks = method.encoder.blocks
    for number, block in enumerate(blocks, start=1):
        assert float(block.attn.qkv.weight.detach().std()) == pytest.approx(0.02, rel=0.03)
        assert float(block.mlp.fc2.weight.detach().std()) == pytest.approx(0.02 / math.sqrt(2 * number), rel=0.03)
        assert float(block.attn.proj.weight.detach().std()) == pytest.approx(0.02 / math.sqrt(2 * number), rel=0.03)
        assert bool((block.ls1.gamma == 0.1).all())
        assert not block.attn.qkv.bias.any()
    assert float(method.head.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert not method.encoder.rel_pos_bias.relative_position_bias_table.any()


def test_an_encoder_without_mask_tokens_is_refused(tiny: Path) -> None:
    with pytest.raises(PluginError, match=r"set encoder\.mask_tokens=true"):
        method_of(tiny, "encoder.mask_tokens=false")
    with pytest.raises(PluginError, match=r"hides none of 64 patches; raise it"):
        method_of(tiny, "mask.ratio=0")


def original(draw: random.Random, side: int, wanted: int) -> np.ndarray:
    """Algorithm 1 of the paper with the official code's choices, written with loops."""
    mask = np.zeros((side, side), bool)
    while (most := wanted - int(mask.sum())) > 0:
        for _ in range(10):
            area, shape = draw.uniform(16, most), math.exp(draw.uniform(math.log(0.3), -math.log(0.3)))
            high, wide = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
            if high >= side or wide >= side:
                continue
            top, left = draw.randint(0, side - high), draw.randint(0, side - wide)
            box = mask[top : top + high, left : left + wide]
            if 0 < box.size - int(box.sum()) <= most:
                box[:] = True
                break
        else:
            break
    return mask


def test_the_mask_is_the_original_algorithms() -> None:
    """Of 2,000 masks each: how much rectangles hide, how often all that is wanted, and each patch's share."""
    draw, count, grid = random.Random(0), 2000, Grid(14, 14)
    theirs = np.stack([original(draw, 14, 75) for _ in range(count)])
    sampler = CATALOG.build("mask", "beit", {"share": 0.3826})
    scores = sampler.scores(torch.zeros(count, 3, 14, 14), grid, Rng(3, torch.arange(count)))
    ours = (scores >= 1).view(count, 14, 14).numpy()
    hidden = [each.reshape(count, -1).sum(1) for each in (ours, theirs)]
    assert max(hidden[0]) == 75
    assert np.mean(hidden[0]) == pytest.approx(np.mean(hidden[1]), abs=0.15)
    assert np.mean(hidden[0] == 75) == pytest.approx(np.mean(hidden[1] == 75), abs=0.06)
    assert ours.mean(0) == pytest.approx(theirs.mean(0), abs=0.075)
    edges = [np.mean(each[:, :, 1:] != each[:, :, :-1]) for each in (ours, theirs)]
    assert edges[0] == pytest.approx(edges[1], rel=0.05)
    mask = Mask.from_scores(scores, 0.3826)
    assert visible_count(196, 0.3826) == 121
    assert bool((mask.as_map().view(count, 14, 14).numpy() >= ours).all())  # the rest is scattered


def run(*words: object) -> str:
    done = CliRunner().invoke(cli._group, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_run_goes_on_exactly_and_is_probed_and_finetuned(tiny: Path, tmp_path: Path) -> None:
    whole, parts, short = tmp_path / "whole", tmp_path / "parts", settings(["schedule.epochs=1.0", "data.workers=0"])
    begin = ["pretrain", tiny / "beit.toml", "--shards", tiny / "shards"]
    run(*begin, "--out", whole)

    def stop(step: int, batch: Any, loss: Any) -> None:
        if step == 4:
            raise KeyboardInterrupt

    made = recipe.load(str(tiny / "beit.toml"))
    assert isinstance(made, recipe.Pretrain)
    with pytest.raises((KeyboardInterrupt, MaePipeError)):
        pretrain(made, tiny / "shards", parts, catalog=CATALOG, seen=stop)
    assert len(losses(parts)) < 6
    run(*begin, "--out", parts)
    assert losses(parts) == losses(whole)
    assert sorted(losses(whole)) == [1, 2, 3, 4, 5, 6]
    weights = [load_file(each / "model.safetensors") for each in (whole, parts)]
    assert all(torch.equal(weights[1][name], weight) for name, weight in weights[0].items())
    published = load_file(whole / "encoder.safetensors")
    assert published["rel_pos_bias.relative_position_bias_table"].any()
    assert "mask_token" not in published
    for verb in ("probe", "finetune"):
        base = [
            "data.global_batch=8",
            "data.micro_batch=4",
            "schedule.warmup_epochs=0.5",
            "eval_every_epochs=1.0",
            "eval_split=train",
        ]
        run(verb, whole, "--shards", tiny / "shards", "--out", tmp_path / verb, *short, *settings(base))
        run("evaluate", tmp_path / verb, "--size", 48)
    each = settings([*base, "bias_per_block=true"])
    run("finetune", whole, "--shards", tiny / "shards", "--out", tmp_path / "own", *short, *each)
    run("evaluate", tmp_path / "own", "--size", 48)
    tables = [w for n, w in load_file(tmp_path / "own" / "model.safetensors").items() if n.endswith(BIAS)]
    assert len(tables) == 2
    assert not torch.equal(*tables)  # they began as one, and went on alone
    for form in ("timm", "official"):
        run("export", tmp_path / "own", "--to", form, "--out", tmp_path / f"sent-{form}")
        run("import", tmp_path / f"sent-{form}", "--out", tmp_path / f"back-{form}")
        back = load_file(tmp_path / f"back-{form}" / "model.safetensors")
        assert all(torch.equal(*pair) for pair in zip(tables, (back[n] for n in back if n.endswith(BIAS)), strict=True))
    with pytest.raises(RunError, match="relative positions, which transformers' ViT has not"):
        run("export", whole, "--to", "huggingface")


def test_a_bias_of_each_block_is_for_finetuning_relative_positions(tiny: Path, tmp_path: Path) -> None:
    begin = [tiny / "beit.toml", "--from-scratch", "--shards", tiny / "shards", "--out"]
    with pytest.raises(RecipeError, match="bias_per_block is for finetuning, as a probe's encoder stays"):
        run("probe", *begin, tmp_path / "probe", "--set", "bias_per_block=true")
    (tiny / "mae.toml").write_text((tiny / "beit.toml").read_text().replace('"relative"', '"sincos"'))
    with pytest.raises(RecipeError, match="bias_per_block is for relative positions, and the encoder's are 'sincos'"):
        run("finetune", tiny / "mae.toml", *begin[1:], tmp_path / "plain", "--set", "bias_per_block=true")
    assert not (tmp_path / "plain").exists()


def test_every_blocks_own_bias_trains_the_same_at_any_stage_and_when_blocks_are_computed_again(
    tiny: Path, tmp_path: Path
) -> None:
    short = ["global_batch=8", "micro_batch=4", "workers=0"]
    base = settings([*(f"data.{each}" for each in short), "schedule.epochs=1.0", "schedule.warmup_epochs=0.5"])
    base += settings(["eval_every_epochs=1.0", "eval_split=train", "bias_per_block=true"])
    begin = ["finetune", tiny / "beit.toml", "--from-scratch", "--shards", tiny / "shards", "--out"]
    found = {}
    for name, choice in {"1": "zero=1", "3": "zero=3", "again": "checkpoint_blocks=2"}.items():
        run(*begin, tmp_path / name, *base, *settings([f"engine.{choice}"]))
        weights = load_file(tmp_path / name / "model.safetensors")
        found[name] = losses(tmp_path / name), [w for n, w in weights.items() if n.endswith(BIAS)]
    assert all(bool(table.any()) for table in found["1"][1])
    for name in ("3", "again"):
        assert found[name][0] == pytest.approx(found["1"][0], rel=1e-5)
        for one, other in zip(found[name][1], found["1"][1], strict=True):
            assert torch.allclose(one, other, atol=1e-6)
