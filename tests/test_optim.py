"""Groups, layers and learning rates are the official ones."""

from __future__ import annotations

import pytest
from torch import nn

from mae_pipe import optim, recipe
from mae_pipe.autoencoder import build_encoder
from mae_pipe.errors import RecipeError

# facebookresearch/mae, lr_sched.py: lr 2.4e-3, warmup 40, 800 epochs.
OFFICIAL_LR = {
    0: 0.0,
    0.5: 2.9999999999999997e-05,
    10: 0.0006,
    39.9: 0.0023939999999999994,
    40: 0.0024,
    41.25: 0.0023999839807244813,
    200: 0.0021469686112756724,
    799.5: 2.5630888731420495e-09,
    800: 0.0,
}


@pytest.mark.parametrize(("epoch", "lr"), OFFICIAL_LR.items())
def test_the_learning_rate_is_the_official_one(epoch: float, lr: float) -> None:
    ours = optim.learning_rate(epoch, 2.4e-3, 0.0, epochs=800, warmup_epochs=40)
    assert ours == pytest.approx(lr, rel=1e-12, abs=1e-18)


def test_layer_decay_and_weight_decay_are_the_official_ones() -> None:
    # param_groups_lrd of facebookresearch/mae for ViT-B and decay 0.75: name -> (lr scale, weight decay).
    official = {
        "cls_token": (0.75**13, 0.0),
        "pos_embed": (0.75**13, 0.0),
        "patch_embed.proj.weight": (0.75**13, 0.05),
        "patch_embed.proj.bias": (0.75**13, 0.0),
        "blocks.0.attn.qkv.weight": (0.75**12, 0.05),
        "blocks.0.attn.qkv.bias": (0.75**12, 0.0),
        "blocks.11.mlp.fc1.weight": (0.75, 0.05),
        "norm.weight": (1.0, 0.0),
    }
    shape = recipe.EncoderShape(width=32, depth=12, heads=4)
    encoder = build_encoder(shape, 32, positions="learned")
    groups = optim.parameter_groups(
        encoder.named_parameters(),
        weight_decay=0.05,
        no_decay=optim.no_decay_finetuning,
        lr_scale=lambda name: 0.75 ** (13 - optim.layer_of(name, 12)),
    )
    found = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    names = dict(encoder.named_parameters())
    assert len(found) == len(names)
    for name, expected in official.items():
        assert found[id(names[name])] == pytest.approx(expected), name


def test_pretraining_decays_tokens_but_neither_biases_nor_norms() -> None:
    module = nn.Module()
    module.register_parameter("mask_token", nn.Parameter(nn.init.zeros_(nn.Linear(1, 1).weight)[None]))
    module.linear, module.norm = nn.Linear(2, 2), nn.LayerNorm(2)
    module.frozen = nn.Linear(2, 2).requires_grad_(False)
    groups = optim.parameter_groups(module.named_parameters(), weight_decay=0.05)
    by_decay = {g["weight_decay"]: len(g["params"]) for g in groups}
    assert by_decay == {0.05: 2, 0.0: 3}


def test_the_global_batch_is_kept_by_accumulation() -> None:
    mae = recipe.Pretrain()
    for world, accumulation in [(1, 64), (8, 8), (64, 1)]:
        plan = optim.Plan.of(mae, 1_281_167, world)
        assert plan.micro_batch * plan.accumulation * world == 4096
        assert plan.accumulation == accumulation
    assert optim.Plan.of(mae, 1_281_167, 64).steps == 800 * 1_281_167 // 4096


@pytest.mark.parametrize(
    ("batch", "world", "says"), [(4096, 3, "data.global_batch=4095"), (4094, 2, "set data.micro_batch=23")]
)
def test_a_batch_that_does_not_divide_is_refused_with_one_that_does(batch: int, world: int, says: str) -> None:
    mae = recipe.Pretrain(data=recipe.Data(global_batch=batch, micro_batch=48))
    with pytest.raises(RecipeError, match=says):
        optim.Plan.of(mae, 1_281_167, world)


def test_a_micro_batch_becomes_the_next_that_divides_a_ranks_part() -> None:
    plan = optim.Plan.of(recipe.Pretrain(data=recipe.Data(micro_batch=48)), 1_281_167, 64)
    assert (plan.micro_batch, plan.accumulation) == (32, 2)


def test_a_plan_has_at_least_one_step() -> None:
    assert optim.Plan.of(recipe.Pretrain(), 10, 1).steps == 1
