"""Mixup and CutMix are timm's for the same draws, their draws timm's in the long run, and the first position's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.random import Generator, Philox
from scipy.stats import ks_2samp, kstest
from timm.data import mixup as timms
from timm.loss.cross_entropy import SoftTargetCrossEntropy

from mae_pipe import recipe
from mae_pipe.errors import RecipeError
from mae_pipe.mixing import Mix, Mixer, box_of, mixed
from tests.test_classification import WEIGHTS, batch, task

PAPERS = recipe.Mixing(mixup=0.8, cutmix=1.0)
CLASSES = 7


def mixer(mixing: recipe.Mixing = PAPERS, smoothing: float = 0.1, seed: int = 0) -> Mixer:
    return Mixer(mixing, classes=CLASSES, smoothing=smoothing, seed=seed)


def given(images: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(images, 3, 20, 28, generator=draw), torch.randint(0, CLASSES, (images,), generator=draw)


class Told:
    """In place of timm's ``numpy.random``: the draws of one micro-batch."""

    def __init__(self, chosen: bool, cut: bool, share: float, centre: tuple[int, int]) -> None:
        self.answers: Iterator[float] = iter([0.0 if chosen else 2.0, 0.0 if cut else 2.0])
        self.share, self.centre = share, iter(centre)

    def rand(self) -> float:
        return next(self.answers)

    def beta(self, a: float, b: float) -> float:
        return self.share

    def randint(self, low: int, high: int, size: int | None = None) -> int:
        return next(self.centre)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_images_and_labels_are_timms_with_the_same_draws(smoothing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = mixer(PAPERS.model_copy(update={"probability": 0.8}), smoothing)
    theirs = timms.Mixup(0.8, 1.0, prob=0.8, label_smoothing=smoothing, num_classes=CLASSES)
    kinds = []
    for position in range(0, 240, 6):
        draws = Generator(Philox(key=np.array([ours._key, position], np.uint64)))
        chosen, switched, *centre = draws.random(4)
        cut = bool(switched < 0.5)
        alpha = 1.0 if cut else 0.8
        told = Told(chosen < 0.8, cut, draws.beta(alpha, alpha), (int(centre[0] * 20), int(centre[1] * 28)))
        images, labels = given()
        with monkeypatch.context() as patch:
            patch.setattr(np, "random", told)
            wanted, shares = theirs(images.clone(), labels)
        before = images.clone()
        mine, soft = ours(images, labels, torch.arange(position, position + 6))
        assert torch.equal(mine, wanted)
        assert torch.equal(soft, shares)
        assert torch.equal(images, before), "the images themselves are left alone"
        kinds.append((bool(chosen < 0.8), cut))
    assert len(set(kinds)) == 4


@pytest.mark.parametrize(
    ("table", "settings"),
    [
        ({"mixup": 0.8, "cutmix": 1.0}, {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}),
        ({"mixup": 0.3, "probability": 0.6}, {"mixup_alpha": 0.3, "prob": 0.6}),
        ({"cutmix": 2.0}, {"mixup_alpha": 0.0, "cutmix_alpha": 2.0}),
        (
            {"mixup": 0.8, "cutmix": 1.0, "probability": 0.7, "switch": 0.2},
            {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "prob": 0.7, "switch_prob": 0.2},
        ),
    ],
)
def test_draws_are_distributed_as_timms(table: dict[str, float], settings: dict[str, float]) -> None:
    np.random.seed(0)
    count, ours, theirs = 4000, mixer(recipe.Mixing(**table)), timms.Mixup(**settings)
    mine = [ours.draw(position, 32, 48) for position in range(0, 64 * count, 64)]
    shares: dict[bool, list[float]] = {True: [], False: []}
    unmixed, tops = 0, []
    for _ in range(count):
        share, cut = theirs._params_per_batch()
        if share == 1.0:
            unmixed += 1
            continue
        if cut:
            (top, *_), share = timms.cutmix_bbox_and_lam((3, 32, 48), share)
            tops.append(top)
        shares[bool(cut)].append(share)
    counts = {
        cut: [mix.share for mix in mine if mix.share != 1 and (mix.box is not None) == cut] for cut in (True, False)
    }
    near = 5 * count**0.5 / 2 + 10
    assert abs(sum(mix.share == 1 and mix.box is None for mix in mine) - unmixed) < near
    for cut in (True, False):
        assert abs(len(counts[cut]) - len(shares[cut])) < near
        assert bool(counts[cut]) == bool(shares[cut])
        assert not shares[cut] or ks_2samp(counts[cut], shares[cut], method="asymp").pvalue > 1e-3
    boxes = [mix.box[0] for mix in mine if mix.box is not None]
    assert not tops or ks_2samp(boxes, tops, method="asymp").pvalue > 1e-3


def test_the_share_of_a_box_is_what_is_left_of_the_image() -> None:
    for position in range(300):
        mix = mixer(recipe.Mixing(cutmix=1.0)).draw(position, 10, 14)
        kept = mixed(torch.zeros(2, 1, 10, 14) + torch.tensor([0.0, 1.0])[:, None, None, None], mix)
        assert kept[1].mean().item() == pytest.approx(mix.share, abs=1e-6)
    assert box_of(0.75, 10, 14, (0, 13)) == (0, 3, 10, 14), "cut off at the corner"
    shares = [mixer(recipe.Mixing(mixup=1.0)).draw(position, 10, 14).share for position in range(2000)]
    assert kstest(shares, "uniform").pvalue > 1e-3


def test_what_is_drawn_belongs_to_the_first_position_and_the_seed() -> None:
    images, labels = given()
    once, again = (mixer()(images, labels, torch.arange(60, 66)) for _ in range(2))
    assert torch.equal(once[0], again[0])
    assert mixer().draw(60, 20, 28) == mixer().draw(60, 20, 28) != mixer().draw(66, 20, 28)
    assert mixer().draw(60, 20, 28) != mixer(seed=1).draw(60, 20, 28)


def test_the_middle_one_of_an_odd_micro_batch_is_mixed_with_itself() -> None:
    images, labels = given(5)
    for mix in (Mix(0.3), Mix(0.75, (2, 12, 0, 14))):
        found = mixed(images, mix)
        assert torch.allclose(found[2], images[2], atol=1e-6)
        assert not torch.allclose(found[1], images[1])
    soft = mixer().shares(labels, 0.3)
    assert torch.allclose(soft[2], mixer().shares(labels)[2])
    assert torch.allclose(soft.sum(dim=1), torch.ones(5))


def test_the_loss_of_a_task_is_timms_soft_cross_entropy_in_training_and_plain_without() -> None:
    tuned, given_ = task("finetune", WEIGHTS, mixing=PAPERS, label_smoothing=0.1), batch()
    images = (given_.pixels / 255 - torch.tensor(tuned.mean)[:, None, None]) / torch.tensor(tuned.std)[:, None, None]
    inputs, shares = Mixer(PAPERS, classes=3, smoothing=0.1, seed=0)(images, given_.labels, given_.positions)
    wanted = SoftTargetCrossEntropy()(tuned.head(tuned.encoder(inputs)), shares)
    assert tuned(given_).item() == pytest.approx(wanted.item(), rel=1e-5)
    plain = task("finetune", WEIGHTS, label_smoothing=0.1).eval()
    assert tuned.eval()(given_).item() == pytest.approx(plain(given_).item(), rel=1e-6)
    assert tuned.train()(given_).item() != pytest.approx(plain(given_).item(), rel=1e-3)


@pytest.mark.parametrize("head", ["multilabel", "segmentation"])
def test_labels_that_are_no_single_class_are_not_mixed(head: str) -> None:
    with pytest.raises(RecipeError, match="mixing is for one class an image"):
        task("finetune", WEIGHTS, mixing=PAPERS, head=recipe.Chosen(name=head))
