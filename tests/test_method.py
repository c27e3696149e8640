"""Methods as plugins: what the trunk does for any of them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mae_pipe import recipe
from mae_pipe.building import build
from mae_pipe.catalog import Catalog
from mae_pipe.checkpoints import Archive
from mae_pipe.downstream import downstream
from mae_pipe.engine.state import AVERAGE
from mae_pipe.errors import MaePipeError, PluginError, RecipeError, Stopped
from mae_pipe.momentum import MomentumCopy, rising
from mae_pipe.optim import Plan
from mae_pipe.pretraining import groups_of, pretrain
from mae_pipe.recipe import Pretrain
from tests.tiny import losses, prepared
from tests.workers import stages

FOLLOWER = Catalog((Path(__file__).parent / "follower.py",))


@pytest.fixture(scope="module")
def tiny(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe file and shards."""
    return prepared(image_folder, tmp_path_factory.mktemp("methods"), epochs=2)


def chosen(tiny: tuple[Path, Path], *changes: str) -> Pretrain:
    loaded = recipe.load(str(tiny[0]), ("saving.every_epochs=1", *changes))
    assert isinstance(loaded, Pretrain)
    return loaded


def following(tiny: tuple[Path, Path], *changes: str) -> Pretrain:
    """The recipe, by the method of follower.py."""
    values = {k: v for k, v in chosen(tiny).model_dump(mode="json").items() if k not in ("decoder", "mask", "target")}
    made = recipe.parse(values | {"method": {"name": "follower"}}, "of a test")
    assert isinstance(made, Pretrain)
    return recipe.changed(made, changes)


def run(made: Pretrain, shards: Path, out: Path, **more: Any) -> Archive:
    """The last checkpoint of a run."""
    pretrain(made, shards, out, catalog=FOLLOWER, **more)
    return Archive.of(sorted((out / "checkpoints").iterdir())[-1])


def test_a_teacher_that_follows_is_part_of_the_checkpoint_and_is_published(
    tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    archive = run(following(tiny), tiny[1], tmp_path / "run")
    weights, published = archive.weights(), load_file(tmp_path / "run" / "encoder.safetensors")
    assert published.keys() == {n.removeprefix("encoder.") for n in weights if n.startswith("encoder.")}
    for name, tensor in published.items():
        assert torch.equal(tensor, weights[f"teacher.part.{name}"])
    assert not torch.equal(published["norm.bias"], weights["encoder.norm.bias"])
    assert float(weights["calls"]) == 0.0


@pytest.mark.parametrize("zero", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_of_another_method_goes_on_exactly(
    tiny: tuple[Path, Path], tmp_path: Path, zero: int, precision: str
) -> None:
    made = following(tiny, f"engine.zero={zero}", f"engine.precision={precision}")
    whole = run(made, tiny[1], tmp_path / "whole")

    def stop(step: int, batch: Any, loss: Any) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, Stopped, MaePipeError)):
        run(made, tiny[1], tmp_path / "halves", seen=stop)
    assert losses(tmp_path / "halves").keys() < losses(tmp_path / "whole").keys()
    halves = run(made, tiny[1], tmp_path / "halves")
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole")
    expected, found = whole.weights(), halves.weights()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(t.dtype == torch.float32 for n, t in found.items() if n.startswith("teacher."))


def test_a_skipped_step_leaves_nothing_behind(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    made = following(tiny, "method.options.broken=19", "saving.every_epochs=0.3333", "saving.keep_last=9")
    run(made, tiny[1], tmp_path / "run")
    steps = [Archive.of(path).weights() for path in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    assert len(steps) == 6
    assert [float(weights["calls"]) for weights in steps] == [0.0] * 6
    moved = [not torch.equal(a["encoder.norm.bias"], b["encoder.norm.bias"]) for a, b in itertools.pairwise(steps)]
    assert moved == [True, False, True, True, True]  # position 19 is of step 3, which is skipped
    assert torch.equal(steps[1]["teacher.part.norm.bias"], steps[2]["teacher.part.norm.bias"])


def test_what_is_held_back_stays_as_it_is_for_so_many_epochs(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    made = following(tiny, "saving.every_epochs=0.3333", "saving.keep_last=9")
    first = build(made, FOLLOWER).state_dict()["predict.weight"]
    run(made, tiny[1], tmp_path / "run")
    steps = [Archive.of(path).weights() for path in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    assert len(steps) == 6  # 3 an epoch
    assert [torch.equal(weights["predict.weight"], first) for weights in steps] == [True] * 3 + [False] * 3
    assert not torch.equal(steps[0]["encoder.norm.bias"], steps[1]["encoder.norm.bias"])


def test_a_pretraining_run_is_published_by_the_average_of_its_weights(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    archive = run(chosen(tiny, "ema=0.8"), tiny[1], tmp_path / "run")
    plain = run(chosen(tiny), tiny[1], tmp_path / "plain")
    published, expected = load_file(tmp_path / "run" / "encoder.safetensors"), plain.weights()
    for name in ("norm.bias", "blocks.0.attn.qkv.weight"):
        average = archive.whole(AVERAGE, f"encoder.{name}")
        assert torch.equal(published[name].flatten(), average)
        assert torch.equal(archive.weights()[f"encoder.{name}"], expected[f"encoder.{name}"])  # it trains as without
        assert not torch.equal(average, expected[f"encoder.{name}"].flatten())


def test_weight_decay_moves_along_a_cosine(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    made = chosen(tiny, "optimizer.weight_decay=0.04", "optimizer.weight_decay_end=0.4")
    plan = Plan.of(made, 24, 1)
    assert plan.steps == 6
    assert [plan.weight_decay(step) for step in (0, 3)] == pytest.approx([0.04, 0.22])
    assert Plan.of(chosen(tiny), 24, 1).weight_decay(3) is None
    # AdamW multiplies a weight by 1 - lr x decay, beside what its gradient does: the same in both runs at first.
    changes = ("schedule.warmup_epochs=0", "schedule.epochs=0.34", "saving.every_epochs=0.3333")  # one step
    ends = [
        run(chosen(tiny, f"optimizer.weight_decay={d}", *more, *changes), tiny[1], tmp_path / f"{d}{len(more)}")
        for d, more in ((0.3, ()), (0.3, ("optimizer.weight_decay_end=0.9",)), (0.0, ()))
    ]
    one, other, none = (end.weights()["encoder.blocks.0.mlp.fc1.weight"] for end in ends)
    assert torch.equal(one, other)  # at step 0 it is the first value
    assert not torch.equal(one, none)


def test_all_parameters_may_decay(tiny: tuple[Path, Path]) -> None:
    task = build(chosen(tiny), FOLLOWER)
    assert {g["weight_decay"] for g in groups_of(task, chosen(tiny))} == {0.0, 0.05}
    assert {g["weight_decay"] for g in groups_of(task, chosen(tiny, "optimizer.decay_all=true"))} == {0.05}


def test_what_a_method_cannot_use_or_have_is_refused_in_words(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'follower' has no use for \[mask\]"):
        build(following(tiny, "mask.ratio=0.5"), FOLLOWER)
    with pytest.raises(RecipeError, match=r"set engine\.zero to 2 or less"):
        pretrain(following(tiny, "engine.zero=3"), tiny[1], tmp_path / "run", catalog=FOLLOWER)
    assert not (tmp_path / "run").exists()
    task = build(following(tiny), FOLLOWER)
    assert not task.reconstructs
    with pytest.raises(PluginError, match="predicts no patches; give it a reconstruction"):
        task.reconstruct(stages.noise(np.arange(2)))


def test_a_run_of_another_method_is_probed_and_says_which_it_was(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    run(following(tiny), tiny[1], tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [(p["kind"], p["name"]) for p in about["plugins"]] == [("method", "follower"), ("shards", "webdataset")]
    probe = recipe.load(
        "probe_digits", ("data.global_batch=8", "schedule.epochs=1", "eval_split=train", "data.workers=0")
    )
    assert isinstance(probe, recipe.Downstream)
    result = downstream(tmp_path / "run", probe, catalog=Catalog())
    assert 0 <= result.metrics["top1"] <= 1


def test_a_copy_follows_in_float32_and_its_momentum_rises() -> None:
    torch.manual_seed(0)
    part = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    follower = MomentumCopy(part).bfloat16()
    first = {name: tensor.double() for name, tensor in part.named_parameters()}
    with torch.no_grad():
        for tensor in part.parameters():
            tensor.add_(0.001)
    follower.follow(part, 0.996)
    for name, tensor in follower.part.named_parameters():
        assert tensor.dtype == torch.float32
        assert not tensor.requires_grad
        assert torch.allclose(tensor.double(), first[name] + 0.004 * 0.001, rtol=0, atol=1e-7)
    assert not follower(torch.ones(2, 4)).requires_grad
    assert [rising(0.99, share) for share in (0.0, 0.5, 1.0)] == pytest.approx([0.99, 0.995, 1.0])
