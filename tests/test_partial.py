"""Partial finetuning: only the last blocks learn, as they would in full finetuning, and the rest costs nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mae_pipe import guards, outcome, recipe, runs
from mae_pipe.catalog import Catalog
from mae_pipe.classification import Classification, read_weights
from mae_pipe.downstream import downstream, groups_of
from mae_pipe.errors import RecipeError
from mae_pipe.opening import folder_of
from mae_pipe.tasks import MaskedAutoencoder
from tests.test_classification import batch
from tests.test_downstream import chosen, encoder_of, measured, run, shards  # noqa: F401  # two are fixtures

DEPTH = 3
MAE = recipe.Pretrain(
    data=recipe.Data(size=16),
    encoder=recipe.EncoderShape(width=32, depth=DEPTH, heads=2, patch=4, layer_scale=0.5),
    decoder=recipe.DecoderShape(width=16, depth=1, heads=2),
)
WEIGHTS = MaskedAutoencoder.from_recipe(MAE, Catalog()).encoder.state_dict()
HALF = ("blocks.2.norm2.", "blocks.2.mlp.", "blocks.2.ls2.", "norm.")
TRAINED = {0: (), 0.5: HALF, 1: ("blocks.2.", "norm."), 2: ("blocks.1.", "blocks.2.", "norm."), 3: ("",)}


def tuned(blocks: float | None, **changes: object) -> recipe.Downstream:
    numbers = recipe.Optimizer(layer_decay=0.5)
    values = {"data": MAE.data, "optimizer": numbers, "tune_blocks": blocks, **changes}
    return recipe.Downstream(task="finetune", **values)  # type: ignore[arg-type]


def task(blocks: float | None, **changes: object) -> Classification:
    return Classification.from_recipe(tuned(blocks, **changes), MAE, WEIGHTS, Catalog(), classes=3)


def gradients(of: Classification) -> dict[str, Tensor]:
    of(batch()).backward()
    return {name: p.grad for name, p in of.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("blocks", "trained"), TRAINED.items())
def test_the_last_blocks_learn_as_in_full_finetuning(blocks: float, trained: tuple[str, ...]) -> None:
    part, full = task(blocks), gradients(task(None))
    wanted = {n for n in full if n.startswith("head.") or n.removeprefix("encoder.").startswith(trained)}
    found = gradients(part)
    assert set(found) == wanted == {n for n, p in part.named_parameters() if p.requires_grad}
    assert all(torch.allclose(found[name], full[name], atol=1e-6) for name in found)
    assert isinstance(part.encoder.pos_embed, torch.nn.Parameter) == (blocks == DEPTH)


@pytest.mark.parametrize("blocks", TRAINED)
def test_rates_are_those_of_full_finetuning_and_the_guard_knows(blocks: float) -> None:
    def rates(of: float | None) -> tuple[list[dict[str, object]], dict[str, tuple[object, object]]]:
        made = task(of)
        names = {id(p): name for name, p in made.named_parameters()}
        groups = groups_of(made, tuned(of))
        return groups, {names[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}

    (groups, part), (_, full) = rates(blocks), rates(None)
    assert part == {name: full[name] for name in part}
    assert guards.of_layer_decay(groups, DEPTH, 0.5, blocks).holds
    for group in groups:
        group["lr_scale"] = 1.0
    assert guards.of_layer_decay(groups, DEPTH, 0.5, blocks).holds == (blocks == 0)


def test_what_is_frozen_keeps_no_activations_and_drops_no_path() -> None:
    def kept(blocks: float | None) -> int:
        sizes: list[int] = []
        made = task(blocks, drop_path=0.5).train()

        def seen(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
            made(batch())
        return sum(sizes)

    sizes = [kept(blocks) for blocks in (0, 0.5, 1, 2, None)]
    assert sizes == sorted(set(sizes))
    assert sizes[2] < 0.45 * sizes[-1]
    part = task(1, drop_path=0.5, dropout=0.1).train()
    assert [block.training for block in part.encoder.blocks] == [False, False, True]
    on = {name for name, module in part.encoder.named_modules() if module.training}
    assert all(name.startswith("blocks.2") or name == "norm" for name in on)
    half = {name for name, module in task(0.5, drop_path=0.5).train().encoder.named_modules() if module.training}
    assert {"norm", "blocks.2.mlp", "blocks.2.drop_path2"} <= half
    assert not half & {"blocks.2", "blocks.2.attn", "blocks.2.drop_path1"}
    assert not any(module.training for module in task(1).eval().modules())


@pytest.mark.parametrize(("blocks", "says"), [(1.5, "whole number of blocks, not 1.5"), (4, "set it to 3 at most")])
def test_blocks_that_there_are_not_are_refused(blocks: float, says: str) -> None:
    with pytest.raises((RecipeError, ValueError), match=says):
        task(blocks)


def test_a_probe_has_no_blocks_to_tune() -> None:
    with pytest.raises(RecipeError, match="tune_blocks is for finetuning"):
        recipe.load("probe", ["tune_blocks=1"])


def test_a_run_leaves_what_is_frozen_to_the_last_bit(run: Path, shards: Path) -> None:  # noqa: F811
    """In bfloat16, in which the engine would round it."""
    settings = chosen("finetune", "tune_blocks=0.5", "labels_per_class=2", "engine.precision=bf16")
    result = downstream(run, settings, catalog=Catalog())
    assert result.folder == folder_of(run, settings, from_scratch=False) == run / "finetune-blocks0.5-2"
    before, after = read_weights(run)[0], encoder_of(result.folder)
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n for n in before if n.startswith(("blocks.1.norm2.", "blocks.1.mlp.", "norm."))}
    assert result.metrics["loss"] == pytest.approx(measured(run, result.folder, shards)["loss"], rel=0.05)
    assert [found.name for found in outcome.results(run)] == ["finetuned, last 0.5 block, pretrained"]
    assert runs.read_recipe(result.folder) == settings.model_copy(update={"data": runs.read_recipe(result.folder).data})
