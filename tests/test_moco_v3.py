"""MoCo v3: the paper's loss, the copy that follows, and runs that do not depend on ranks or on being stopped."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from mae_pipe.building import build
from mae_pipe.catalog import Catalog
from mae_pipe.data.batch import Batch
from mae_pipe.errors import PluginError, RecipeError
from mae_pipe.pretraining import construct, groups_of, pretrain
from mae_pipe.recipe import Pretrain, changed
from mae_pipe.sharding import build as shard
from tests.nursing import call
from tests.tiny import losses
from tests.workers import contrasted

Array = np.ndarray[Any, np.dtype[np.float64]]


def chosen(*changes: str) -> Pretrain:
    return changed(contrasted.chosen({"precision": "fp32"}, contrasted.ADAMW), changes)


def task_of(*changes: str) -> Any:
    return build(chosen(*changes), Catalog())


def batch_of(images: int) -> Batch:
    pixels = torch.randint(0, 256, (images, 2, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    numbers = torch.arange(images)
    return Batch(pixels.to(torch.uint8), torch.full((images,), -1), numbers, numbers)


@pytest.fixture(scope="module")
def shards(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    shard(image_folder, folder, catalog=Catalog(), workers=1, per_shard=100)
    return folder


@pytest.fixture(scope="module")
def runs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of every leg."""
    out = tmp_path_factory.mktemp("legs")
    call(contrasted, shards, out)
    return out


def mlp(weights: dict[str, Tensor], rows: Array) -> Array:
    """Linear layers with batch norm over the rows and, between them, ReLU, in float64."""
    numbers = sorted({int(name.partition(".")[0]) for name in weights if name.endswith("running_mean")})
    for number in numbers:  # of the norms; the linear layer is before it
        rows = rows @ weights[f"{number - 1}.weight"].double().numpy().T
        rows = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
        if number != numbers[-1]:
            scale, shift = (weights[f"{number}.{part}"].double().numpy() for part in ("weight", "bias"))
            rows = np.maximum(rows * scale + shift, 0)
    return rows


def info_nce(queries: Array, keys: Array, temperature: float) -> float:
    """The mean of -log of the softmax at a query's own key."""
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, keys)]
    grades = unit[0] @ unit[1].T / temperature
    return float(np.mean(np.log(np.exp(grades).sum(axis=1)) - np.diag(grades)))


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_loss_is_the_papers_in_float64(temperature: float) -> None:
    task = task_of(f"method.options.temperature={temperature}").train()
    with torch.no_grad():
        for parameter in task.parameters():  # so that the copy is not what it copies, and no scale is 1
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    batch = batch_of(6)
    views = task.images_of(batch)
    queries, keys = [], []
    with torch.no_grad():
        for view in views:
            token, slow = (encoder(view)[:, 0].double().numpy() for encoder in (task.encoder, task.slow_encoder.part))
            query = mlp(task.projector.state_dict(), token)
            queries.append(mlp(task.predictor.state_dict(), query))
            keys.append(mlp(task.slow_projector.part.state_dict(), slow))
    one, other = info_nce(queries[0], keys[1], temperature), info_nce(queries[1], keys[0], temperature)
    assert float(task.loss(batch).detach()) == pytest.approx(2 * temperature * (one + other), rel=1e-5)
    assert one != pytest.approx(other, rel=1e-3), "else a view taken twice would not show"


def test_no_gradient_goes_through_keys_or_into_the_patch_projection() -> None:
    task = task_of().train()
    task.loss(batch_of(6)).backward()
    without = {name for name, parameter in task.named_parameters() if parameter.grad is None}
    frozen = {"encoder.patch_embed.proj.weight", "encoder.patch_embed.proj.bias"}
    assert without == frozen | {name for name, _ in task.named_parameters() if name.startswith("slow_")}


def test_the_copy_follows_with_a_momentum_that_rises_to_one() -> None:
    task = task_of("method.options.momentum=0.99")
    expected = {n: p.double().clone() for n, p in task.slow_encoder.part.named_parameters()}
    before = copy.deepcopy(task.slow_projector.part.state_dict())
    for step in range(1, 5):
        for parameter in (*task.encoder.parameters(), *task.projector.parameters()):
            parameter.data.add_(0.1)
        task.after_step(step / 4)
        momentum = 1 - (1 - 0.99) * (1 + math.cos(math.pi * step / 4)) / 2
        for name, parameter in task.encoder.named_parameters():
            expected[name] = momentum * expected[name] + (1 - momentum) * parameter.detach().double()
    for name, parameter in task.slow_encoder.part.named_parameters():
        torch.testing.assert_close(parameter.double(), expected[name], rtol=1e-6, atol=1e-6)
    assert not torch.equal(task.slow_projector.part[0].weight, before["0.weight"])


def test_first_weights_are_those_of_the_official_code() -> None:
    task = task_of("encoder.width=64", "encoder.heads=4")
    assert float(task.encoder.cls_token.detach().abs().max()) < 1e-5
    assert not task.encoder.patch_embed.proj.bias.detach().any()
    for block in task.encoder.blocks:
        most = float(block.attn.qkv.weight.detach().abs().max())
        assert 0.99 * math.sqrt(6 / (64 + 64)) < most <= math.sqrt(6 / (64 + 64))
    for mine, its in zip(task.encoder.parameters(), task.slow_encoder.part.parameters(), strict=True):
        assert torch.equal(mine, its)
    assert [type(part).__name__ for part in task.projector] == [
        *("Linear", "SyncedBatchNorm", "ReLU") * 2,
        *("Linear", "SyncedBatchNorm"),
    ]
    assert [part.affine for part in task.predictor if hasattr(part, "affine")] == [True, False]


def test_views_are_the_papers() -> None:
    first, second = task_of().views
    assert first.jitter == second.jitter == (0.4, 0.4, 0.2, 0.1)
    assert (first.jitter_share, first.grey, first.blur, first.solarize) == (0.8, 0.2, 1.0, 0.0)
    assert (second.jitter_share, second.grey, second.blur, second.solarize) == (0.8, 0.2, 0.1, 0.2)
    assert [one.plain for one in task_of("method.options.colours=false").views] == [True, True]


def test_all_that_trains_decays() -> None:
    recipe = chosen()
    groups = groups_of(build(recipe, Catalog()), recipe)
    assert [group["weight_decay"] for group in groups] == [recipe.optimizer.weight_decay]


def test_features_are_class_tokens() -> None:
    task = task_of().eval()
    images = task.images_of(batch_of(3))[0]
    assert torch.equal(task.features(images), task.encoder(images)[:, 0])


def test_signs_tell_a_collapse() -> None:
    task = task_of().train()
    assert task.signs() == {}
    task.loss(batch_of(64))
    healthy = task.signs()
    assert 0 <= healthy["pairs_found"] <= 1
    assert 0.8 < healthy["output_spread"] < 1.1
    torch.nn.init.zeros_(task.predictor[-2].weight)
    task.predictor.append(torch.nn.Linear(16, 16))
    task.loss(batch_of(64))
    assert task.signs()["output_spread"] < 1e-3


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        (["engine.zero=3"], RecipeError, "a part that follows the encoder.*set engine.zero to 2 or less"),
        (["encoder.class_tokens=0"], PluginError, "set encoder.class_tokens to 1"),
        (["method.options.temperature=0.0"], PluginError, "temperature must be above 0"),
        (["method.options.momentum=1.5"], PluginError, "momentum between 0 and 1"),
        (["mask.ratio=0.5"], RecipeError, r"no use for \[mask\]"),
    ],
)
def test_what_cannot_be_is_refused_in_words(changes: list[str], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        construct(chosen(*changes), Catalog(), classes=2)


@pytest.mark.parametrize("name", ["two", "two at ZeRO 2"])
def test_ranks_change_nothing(runs: Path, name: str) -> None:
    expected, found = losses(runs / "one"), losses(runs / name)
    assert len(expected) == contrasted.STEPS
    assert found == pytest.approx(expected, rel=1e-5)
    whole, mine = (load_file(runs / of / "model.safetensors") for of in ("one", name))
    for key, wanted in whole.items():
        torch.testing.assert_close(mine[key], wanted, rtol=1e-5, atol=1e-5, msg=key)
    moved = whole["encoder.blocks.0.mlp.fc1.weight"] - task_of().state_dict()["encoder.blocks.0.mlp.fc1.weight"]
    assert float(moved.abs().max()) > 3e-4, "else equal weights would say nothing"


def test_a_run_that_was_stopped_goes_on_to_the_last_bit(runs: Path) -> None:
    assert losses(runs / "gone on") == losses(runs / "whole")
    whole, mine = (load_file(runs / of / "model.safetensors") for of in ("whole", "gone on"))
    assert set(whole) == set(mine)
    assert [key for key, wanted in whole.items() if not torch.equal(mine[key], wanted)] == []


def test_in_bfloat16_the_copy_is_float32_and_moves(runs: Path) -> None:
    weights, first = load_file(runs / "whole" / "model.safetensors"), task_of().state_dict()
    name = "slow_encoder.part.blocks.0.attn.qkv.weight"
    assert weights[name].dtype == torch.float32
    assert not torch.equal(weights[name], weights[name].bfloat16().float())
    assert 1e-4 < float((weights[name] - first[name]).abs().max()) < 1
    published = load_file(runs / "whole" / "encoder.safetensors")
    assert {name.partition(".")[0] for name in published} == {"cls_token", "pos_embed", "patch_embed", "blocks", "norm"}


def test_it_learns_and_does_not_collapse(shards: Path, tmp_path: Path) -> None:
    batches: list[Batch] = []
    recipe = chosen("data.global_batch=24", "data.micro_batch=24", "schedule.epochs=40")
    recipe = changed(recipe, ["method.options.colours=false"])  # these images differ by colours, and little else
    pretrain(recipe, shards, tmp_path / "run", catalog=Catalog(), seen=lambda step, batch, loss: batches.append(batch))
    found = list(losses(tmp_path / "run").values())
    blind = 4 * 0.2 * math.log(24)  # of outputs that are all the same
    assert np.mean(found[-5:]) < 0.8 * np.mean(found[:5])
    assert np.mean(found[-5:]) < 0.7 * blind
    task: Any = build(recipe, Catalog())
    task.encoder.load_state_dict(load_file(tmp_path / "run" / "encoder.safetensors"))
    with torch.no_grad():
        one, other = (F.normalize(task.features(view), dim=1) for view in task.images_of(batches[-1]))
    nearest = (one - one.mean(0)) @ (other - other.mean(0)).T
    assert float((nearest.argmax(1) == torch.arange(24)).float().mean()) > 0.3  # by chance 0.04
