"""Heads: the contract for every installed one, and what each promises."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mae_pipe.catalog import Catalog
from mae_pipe.contracts import Head
from mae_pipe.errors import PluginError
from mae_pipe.testing import check_head
from mae_pipe.testing.heads import VIEWS

CATALOG = Catalog()


def head_of(name: str, classes: int = 10, **options: Any) -> Head:
    head: Head = CATALOG.build("head", name, options, width=16, classes=classes, class_tokens=1, view=VIEWS[0])
    return head


@pytest.mark.parametrize("name", CATALOG.names("head"))
@pytest.mark.parametrize("classes", [2, 10])
def test_every_installed_head_keeps_the_contract(name: str, classes: int) -> None:
    check_head(head_of(name, classes), width=16, classes=classes)


@pytest.mark.parametrize("options", [{"pool": "token"}, {"batch_norm": True}, {"pool": "token", "batch_norm": True}])
def test_the_linear_head_keeps_the_contract_with_every_option(options: dict[str, Any]) -> None:
    check_head(head_of("linear", **options), width=16, classes=10)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("linear", {"layer_norm": True}),
        ("attentive", {"heads": 2, "queries": 3}),
        ("multilabel", {"pool": "token", "bins": 50}),
        ("knn", {"pool": "token", "k": 1}),
        ("segmentation", {"decoder": "upernet", "hidden": 16}),
        ("segmentation", {"decoder": "upernet", "hidden": 16, "blocks": [0, 1, 2, 3]}),
    ],
)
def test_the_other_heads_keep_the_contract_with_other_options(name: str, options: dict[str, Any]) -> None:
    check_head(head_of(name, **options), width=16, classes=10)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("attentive", {"heads": 3}, "heads must divide the width 16"),
        ("attentive", {"heads": -4}, "heads must divide the width 16"),
        ("knn", {"k": 0}, "k must be at least 1"),
        ("knn", {"temperature": 0.0}, "temperature above 0"),
        ("multilabel", {"bins": 1}, "bins must be at least 2, got 1"),
        ("segmentation", {"decoder": "upernet", "hidden": 24}, "hidden must be a multiple of 16, got 24"),
        ("segmentation", {"decoder": "upernet", "blocks": [0, 1]}, "blocks are 4 for the decoder 'upernet'"),
        ("segmentation", {"blocks": [0, 1, 2, 3]}, "blocks are 4 for the decoder 'upernet', got .* for 'linear'"),
        ("linear", {"batch_norm": True, "layer_norm": True}, "one norm is enough"),
    ],
)
def test_options_that_cannot_be_are_a_sentence(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(PluginError, match=says):
        head_of(name, **options)


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_pool_says_which_tokens_are_classified(name: str) -> None:
    tokens = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[:, 0] += 1
    by_token, by_mean = head_of(name, pool="token").eval(), head_of(name, pool="mean").eval()
    with torch.no_grad():
        assert not torch.equal(by_token(tokens), by_token(other))
        assert torch.equal(by_mean(tokens), by_mean(other))
        shuffled = tokens[:, [0, 3, 2, 4, 1]]
        assert torch.allclose(by_mean(tokens), by_mean(shuffled), atol=1e-6)


def test_accuracies_are_those_of_a_sorted_list() -> None:
    generator = torch.Generator().manual_seed(1)
    output, labels = torch.randn(200, 10, generator=generator), torch.randint(0, 10, (200,), generator=generator)
    metrics = head_of("linear").metrics(output, labels)
    ranks = [sorted(row, reverse=True).index(row[label]) for row, label in zip(output.tolist(), labels, strict=True)]
    assert metrics["top1"].tolist() == [float(rank < 1) for rank in ranks]
    assert metrics["top5"].tolist() == [float(rank < 5) for rank in ranks]


def test_top5_of_three_classes_is_always_right() -> None:
    metrics = head_of("linear", classes=3).metrics(torch.randn(7, 3), torch.zeros(7, dtype=torch.int64))
    assert metrics["top5"].tolist() == [1.0] * 7


def test_an_untrained_linear_head_knows_nothing() -> None:
    head = head_of("linear", std=2e-5)
    losses = head.loss(head(torch.randn(8, 5, 16)), torch.arange(8))
    assert losses.tolist() == pytest.approx([math.log(10)] * 8, rel=1e-3)


def test_batch_norm_has_no_parameters_and_float32_statistics_in_a_bfloat16_engine() -> None:
    head = head_of("linear", batch_norm=True)
    assert sorted(dict(head.named_parameters())) == ["classify.bias", "classify.weight"]
    tokens = torch.randn(64, 5, 16, generator=torch.Generator().manual_seed(2)) * 3 + 100
    for _ in range(200):
        head(tokens)
    precise = head.eval()(tokens)
    head.bfloat16()
    statistics = dict(head.named_buffers())
    assert statistics["norm.running_mean"].dtype == statistics["norm.running_var"].dtype == torch.float32
    assert statistics["norm.running_mean"].allclose(tokens[:, 1:].mean(1).mean(0), rtol=1e-4)
    assert head(tokens).dtype == torch.bfloat16
    assert torch.allclose(head(tokens).float(), precise, atol=0.02)


def test_the_mlp_heads_hidden_layer_is_as_wide_as_asked_for() -> None:
    assert sum(p.numel() for p in head_of("mlp", hidden=8).parameters()) == 2 * 16 + (16 * 8 + 8) + (8 * 10 + 10)
    assert sum(p.numel() for p in head_of("mlp").parameters()) == 2 * 16 + (16 * 16 + 16) + (16 * 10 + 10)


@pytest.mark.parametrize(("name", "options"), [("linear", {"pool": "max"}), ("mlp", {"hidden": -1}), ("mlp", {"x": 1})])
def test_options_that_cannot_be_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(PluginError, match=f"{name!r} refuses its options"):
        head_of(name, **options)


class _Right(Head):
    """A right head, to be broken in one way at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(16, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.layer(tokens[:, 0])
        return out

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(output, labels, reduction="none")

    def metrics(self, output: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"top1": (output.argmax(1) == labels).float()}


class _Reduced(_Right):
    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        return super().loss(output, labels).mean()


class _NumbersOnly(_Right):
    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        return super().loss(output, labels) + labels.dim() - 1


class _Ranked(_Right):
    def metrics(self, output: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {**super().metrics(output, labels), "rank": output[:, 0].argsort().argsort().float()}


class _Idle(_Right):
    def __init__(self) -> None:
        super().__init__()
        self.more = torch.nn.Linear(16, 10)


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (_Reduced(), r"loss gave shape \[\], expected \[6\]"),
        (_NumbersOnly(), "labels as shares"),
        (_Ranked(), "depends on its batch"),
        (_Idle(), r"more\.weight"),
    ],
)
def test_the_check_finds_a_head_that_breaks_the_contract(head: Head, why: str) -> None:
    check_head(_Right(), width=16, classes=10)
    with pytest.raises(PluginError, match=why):
        check_head(head, width=16, classes=10)
