"""A model that is filled part by part begins with the weights of one that is built as always."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.deferred import begin, deferred
from mae_pipe.errors import RecipeError
from mae_pipe.tasks import MaskedAutoencoder


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["encoder.qk_norm=true", "encoder.layer_scale=1e-5", "encoder.class_tokens=3", "encoder.mask_tokens=true"],
        ["encoder.class_tokens=0", "target.name=hog", "decoder.depth=0"],
    ],
)
def test_every_first_weight_and_buffer_is_the_same_to_the_last_bit(changes: list[str]) -> None:
    chosen = recipe.load("digits", changes)
    assert isinstance(chosen, recipe.Pretrain)
    usual = MaskedAutoencoder.from_recipe(chosen, Catalog())
    before = torch.random.get_rng_state()
    later = deferred(lambda: MaskedAutoencoder.from_recipe(chosen, Catalog()))
    found = {name: begin(parameter) for name, parameter in reversed(list(later.named_parameters()))}
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(parameter.is_meta for parameter in later.encoder.parameters())
    assert found.keys() == dict(usual.named_parameters()).keys()
    assert all(torch.equal(found[name], parameter) for name, parameter in usual.named_parameters())
    assert all(torch.equal(later.get_buffer(name), buffer) for name, buffer in usual.named_buffers())


def test_what_comes_after_a_deferred_model_draws_on_from_it() -> None:
    def drawn(build: Any) -> torch.Tensor:
        torch.manual_seed(3)
        build()
        return torch.rand(4)

    def build() -> nn.Module:
        layer = nn.Linear(30, 20)
        nn.init.trunc_normal_(layer.weight, std=0.02)
        return layer

    assert torch.equal(drawn(build), drawn(lambda: deferred(build)))


def test_parts_of_a_parameter_and_chains_of_operations_are_repeated() -> None:
    def build() -> nn.Linear:
        torch.manual_seed(5)
        layer = nn.Linear(6, 8)
        nn.init.trunc_normal_(layer.weight, std=0.02)
        with torch.no_grad():
            nn.init.orthogonal_(layer.weight[4:])
            layer.weight[2:4].fill_(7.0)
            layer.weight.t()[0].normal_()
            layer.bias.copy_(torch.arange(8.0)).mul_(2)
        return layer

    usual, later = build(), deferred(build)
    for name, parameter in usual.named_parameters():
        assert torch.equal(begin(later.get_parameter(name)), parameter), name


def test_a_parameter_that_is_read_as_the_model_is_built_is_refused() -> None:
    def build() -> nn.Module:
        layer = nn.Linear(6, 8)
        with torch.no_grad():
            layer.bias.copy_(layer.weight.sum(dim=1))
        return layer

    with pytest.raises(RecipeError, match="sharded_construction"):
        deferred(build)
