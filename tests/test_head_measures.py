"""What the heads measure, against independent code; and that each learns."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn import functional as F

from mae_pipe.catalog import Catalog
from mae_pipe.contracts import Head, View
from mae_pipe.errors import PluginError

VIEW = View(24, 32, patch=(8, 8), mean=(0.5,), std=(0.2,))  # 3 x 4 patches


def made(name: str, *, classes: int = 5, class_tokens: int = 1, **options: Any) -> Head:
    torch.manual_seed(0)
    given = {"width": 16, "classes": classes, "class_tokens": class_tokens, "view": VIEW}
    head: Head = Catalog().build("head", name, options, **given)
    return head


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def means(head: Head, output: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """As an evaluation adds them up, in two batches of unlike size."""
    parts = [head.metrics(output[:7], labels[:7]), head.metrics(output[7:], labels[7:])]
    return {n: torch.cat([part[n] for part in parts]).double().mean(0) for n in parts[0]}


@pytest.mark.parametrize("k", [1, 5, 20])
def test_the_vote_of_neighbours_is_scikit_learns(k: int) -> None:
    bank, known, asked = noise(60, 13, 16), torch.arange(60) % 5, noise(9, 13, 16, seed=2)
    head = made("knn", k=k, others=[3], temperature=0.1)
    head.fit(iter([(bank[:37], known[:37]), (bank[37:], known[37:])]))
    found = head(asked)[:, 0]
    vectors = [F.normalize(tokens[:, 1:].mean(1), dim=1).numpy() for tokens in (bank, asked)]
    off, places = NearestNeighbors(n_neighbors=k, metric="cosine").fit(vectors[0]).kneighbors(vectors[1])
    votes = np.zeros((9, 5))
    for image in range(9):
        for cosine, place in zip(1 - off[image], places[image], strict=True):
            votes[image, known[place]] += np.exp(cosine / 0.1)
    assert np.abs(votes / votes.sum(1, keepdims=True) - found.numpy()).max() < 1e-4
    labels = torch.arange(9) % 5
    measured = head.metrics(head(asked), labels)
    assert measured["top1"].tolist() == (votes.argmax(1) == labels.numpy()).astype(float).tolist()
    assert set(measured) == {"top1", "top5", "top1_k3"}
    assert list(head.parameters()) == []


def test_a_bank_is_compared_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    head = made("knn", k=20)
    head.fit(iter([(noise(60, 13, 16), torch.arange(60) % 5)]))
    asked = noise(9, 13, 16, seed=2)
    whole = head(asked)
    for size in (1, 7, 59):
        monkeypatch.setattr(sys.modules[type(head).__module__], "CHUNK", size)
        assert torch.allclose(head(asked), whole, atol=1e-6)


def test_more_neighbours_than_images_are_all_of_them() -> None:
    head = made("knn", k=500)
    head.fit(iter([(noise(6, 13, 16), torch.arange(6) % 5)]))
    assert torch.allclose(head(noise(2, 13, 16, seed=3)).sum(-1), torch.ones(2, 4))


@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_average_precision_is_scikit_learns(spread: float) -> None:
    has = noise(300, 5, seed=4) > torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0])
    output = spread * (noise(300, 5, seed=5) + 2 * has.float() - 1)
    head = made("multilabel")
    found = head.summary(means(head, output, has.float()))
    expected = np.mean([average_precision_score(has[:, c], output[:, c]) for c in range(5)])
    assert found["map"] == pytest.approx(expected, abs=1e-3)
    assert found["micro_f1"] == pytest.approx(f1_score(has, output > 0, average="micro"), abs=1e-6)
    assert found["exact_match"] == pytest.approx(float(((output > 0) == has).all(1).double().mean()))
    loss = head.loss(output, has.float())
    direct = -(has * output.double().sigmoid().log() + ~has * (-output.double()).sigmoid().log()).mean(1)
    assert torch.allclose(loss.double(), direct, atol=1e-6)


@pytest.mark.parametrize(
    ("rate", "apart", "spread", "shift"), [(0.3, 3, 1, 0), (0.01, 2, 1.5, -6), (0.05, 1, 1, -3), (0.2, 2, 5, -15)]
)
def test_bins_are_as_good_as_sorting_whether_classes_are_rare_or_scores_far_off(
    rate: float, apart: float, spread: float, shift: float
) -> None:
    draw = np.random.default_rng(10)
    has = draw.random((10_000, 5)) < rate
    scores = ((draw.normal(size=has.shape) + apart * has) * spread + shift).astype(np.float32)
    expected = np.mean([average_precision_score(has[:, c], scores[:, c]) for c in range(5)])
    head, sums = made("multilabel"), torch.zeros(5, 2, 1000)
    for some in np.array_split(np.arange(len(has)), 40):
        labels = torch.from_numpy(has[some]).float()
        sums += head.metrics(torch.from_numpy(scores[some]), labels)["counts"].sum(0)
    nothing = torch.zeros(())
    means = {"counts": sums / len(has), "said": nothing, "there": nothing, "hits": nothing}
    assert head.summary(means)["map"] == pytest.approx(expected, abs=1e-3)


def test_scores_that_are_all_alike_are_worth_the_share_of_images_and_no_label_is_worth_nothing() -> None:
    head = made("multilabel")
    has = (torch.arange(200) % 4 == 0).float()[:, None].expand(-1, 5)
    assert head.summary(means(head, torch.zeros(200, 5), has))["map"] == pytest.approx(0.25, abs=0.015)
    assert head.summary(means(head, noise(20, 5), torch.zeros(20, 5)))["map"] == 0.0


@pytest.mark.parametrize("decoder", ["linear", "upernet"])
def test_the_intersection_over_union_is_that_of_one_confusion_matrix(decoder: str) -> None:
    head = made("segmentation", decoder=decoder, hidden=16)
    labels = torch.randint(0, 5, (11, 24, 32), generator=torch.Generator().manual_seed(6))
    labels[labels == 3] = 255  # class 3 is nowhere: it does not count, where nobody says it
    output = head.eval()(noise(11, 13, 16, seed=7))
    assert output.shape == (11, 5, 24, 32)
    output = output + 0.05 * noise(11, 5, 24, 32, seed=8)
    output[:, 3] = -99
    found = head.summary(means(head, output, labels))
    guess, kept = output.argmax(1), labels != 255
    matrix = np.zeros((5, 5))
    np.add.at(matrix, (labels[kept].numpy(), guess[kept].numpy()), 1)
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    assert found["miou"] == pytest.approx((matrix.diagonal()[union > 0] / union[union > 0]).mean(), abs=1e-6)
    there = matrix.sum(1) > 0
    recall = matrix.diagonal()[there] / matrix.sum(1)[there]
    assert found["mean_accuracy"] == pytest.approx(recall.mean(), abs=1e-6)
    assert found["pixel_accuracy"] == pytest.approx(matrix.trace() / matrix.sum(), abs=1e-6)
    direct = [F.cross_entropy(o[:, k].T.double(), lab[k]) for o, lab, k in zip(output, labels, kept, strict=True)]
    assert torch.allclose(head.loss(output, labels).double(), torch.stack(direct), atol=1e-5)
    nothing = torch.full((2, 24, 32), 255)
    assert head.loss(output[:2], nothing).tolist() == [0.0, 0.0]


def test_several_class_tokens_are_averaged_and_none_is_refused() -> None:
    head = made("linear", class_tokens=3, pool="token")
    tokens = noise(2, 15, 16)
    assert torch.allclose(head(tokens), head(tokens[:, [1, 2, 0, *range(3, 15)]]), atol=1e-6)
    assert not torch.allclose(head(tokens), head(tokens.roll(1, 1)), atol=1e-3)
    with pytest.raises(PluginError, match="the encoder has no class token"):
        made("linear", class_tokens=0, pool="token")


def task(name: str, labels: str) -> tuple[Tensor, Tensor]:
    """Tokens that tell their labels: one direction a class, at one patch or at all."""
    draw = torch.Generator().manual_seed(9)
    directions = torch.randn(5, 16, generator=draw)
    tokens = 0.5 * torch.randn(64, 13, 16, generator=draw)
    if labels == "class":
        numbers = torch.arange(64) % 5
        place = torch.randint(1, 13, (64,), generator=draw)
        tokens[torch.arange(64), place] += 3 * directions[numbers]
        return tokens, numbers
    if labels == "multi":
        has = (torch.rand(64, 5, generator=draw) < 0.4).float()
        return tokens + (has @ directions)[:, None], has
    numbers = torch.randint(0, 5, (64, 3, 4), generator=draw)
    tokens[:, 1:] += 2 * directions[numbers.flatten(1)]
    return tokens, numbers.repeat_interleave(8, 1).repeat_interleave(8, 2)


@pytest.mark.parametrize(
    ("name", "options", "steps", "goal"),
    [
        ("attentive", {"heads": 4}, 60, 0.95),
        ("multilabel", {}, 100, 0.95),
        ("segmentation", {}, 60, 0.75),  # its edges are blurred: a patch of 8 pixels is the finest that it sees
        ("segmentation", {"decoder": "upernet", "hidden": 16}, 30, 0.6),
    ],
)
def test_every_head_learns(name: str, options: dict[str, Any], steps: int, goal: float) -> None:
    head = made(name, **options)
    tokens, labels = task(name, head.labels)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        head.loss(head(tokens), labels).mean().backward()
        optimizer.step()
    head.eval()
    with torch.no_grad():
        found = head.summary(means(head, head(tokens), labels))
    assert found[head.main] > goal
