"""What would train to nothing is found before it trains; the defects are those that peers have shipped."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mae_pipe import guards
from mae_pipe.autoencoder import build_encoder
from mae_pipe.contracts import Target
from mae_pipe.errors import TrainingError
from mae_pipe.optim import layer_of, parameter_groups
from mae_pipe.positions import sincos_positions
from mae_pipe.recipe import EncoderShape, MaskChoice, TargetChoice
from mae_pipe.tasks import MaskedAutoencoder
from tests.test_model import DECODER, ENCODER, batch_of, task_of


def failed(task: MaskedAutoencoder) -> set[str]:
    return {finding.name for finding in guards.of_pretraining(task, batch_of(4)) if not finding.holds}


@pytest.mark.parametrize("target", ["pixel", "normalized_pixel"])
@pytest.mark.parametrize("mask", ["random", "block", "grid"])
@pytest.mark.parametrize("loss_on", ["hidden", "all"])
def test_what_we_build_passes(target: str, mask: str, loss_on: str) -> None:
    changes = {"target": TargetChoice.model_validate({"name": target, "loss_on": loss_on})}
    assert failed(task_of(**changes, mask=MaskChoice(name=mask))) == set()


@pytest.mark.parametrize(
    "shape",
    [
        {"mask_tokens": True},
        {"class_tokens": 4},
        {"class_tokens": 0},
        {"qk_norm": True},
        {"layer_scale": 0.1},
        {"drop_path": 0.5},
    ],
)
def test_every_option_of_the_encoder_passes(shape: dict[str, object]) -> None:
    assert failed(task_of(encoder=ENCODER.model_copy(update=shape))) == set()


def zero_decoder_positions(task: MaskedAutoencoder) -> None:
    """Hugging Face's ViTMAEForPreTraining(config): zero and frozen."""
    task.decoder.pos_embed.zero_()


def zero_encoder_positions(task: MaskedAutoencoder) -> None:
    """The same in transformers 5."""
    task.encoder.pos_embed.zero_()


def swapped_halves(task: MaskedAutoencoder) -> None:
    """MoCo v3's and mmpretrain's table: the right numbers in other places; on a square grid its sums are equal."""
    half = task.encoder.pos_embed.shape[-1] // 2
    task.encoder.pos_embed.copy_(task.encoder.pos_embed.roll(half, -1) * 1.01)


def forgotten_parameter(task: MaskedAutoencoder) -> None:
    task.encoder.extra = nn.Parameter(torch.ones(1))


def loud_predictions(task: MaskedAutoencoder) -> None:
    with torch.no_grad():
        task.decoder.predict.weight.mul_(30)


class Constant(Target):
    """A target without information."""

    width = 4

    def truth(self, images: Tensor) -> Tensor:
        return torch.ones(len(images), 16, 4)

    def loss(self, prediction: Tensor, truth: Tensor) -> Tensor:
        return (prediction - truth).square().mean(-1)

    def picture(self, prediction: Tensor, images: Tensor) -> Tensor:
        return images


def constant_target(task: MaskedAutoencoder) -> None:
    task.target = Constant()
    task.decoder.predict = nn.Linear(DECODER.width, 4)


@pytest.mark.parametrize(
    ("plant", "name"),
    [
        (zero_decoder_positions, "predictions at hidden patches differ by position"),
        (zero_decoder_positions, "the decoder's position table is the sin-cos one"),
        (zero_encoder_positions, "the encoder sees where a patch is"),
        (zero_encoder_positions, "the encoder's position table is the sin-cos one"),
        (swapped_halves, "the encoder's position table is the sin-cos one"),
        (forgotten_parameter, "every trainable parameter gets a gradient"),
        (loud_predictions, "the first loss is what an untrained model has"),
        (constant_target, "the target varies from patch to patch"),
    ],
)
def test_a_planted_defect_is_found(plant: Callable[[MaskedAutoencoder], None], name: str) -> None:
    task = task_of()
    plant(task)
    assert name in failed(task)
    with pytest.raises(TrainingError, match="this would train to nothing"):
        guards.require(guards.of_pretraining(task, batch_of(4)))


def test_the_model_is_left_as_it_was() -> None:
    task = task_of().train()
    before, noise = {n: w.clone() for n, w in task.state_dict().items()}, torch.get_rng_state()
    assert failed(task) == set()
    assert task.training
    assert torch.equal(torch.get_rng_state(), noise)
    assert all(parameter.grad is None for parameter in task.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in task.state_dict().items())


@pytest.mark.parametrize(("width", "side"), [*guards.PUBLISHED])
def test_the_formula_gives_the_published_sums(width: int, side: int) -> None:
    table = sincos_positions(width, side, side).double()
    for absolute, published in zip((False, True), guards.PUBLISHED[width, side], strict=True):
        assert guards._sum(side, side, width, absolute=absolute) == pytest.approx(published, rel=1e-6)
        assert float((table.abs() if absolute else table).sum()) == pytest.approx(published, rel=1e-6)


def test_a_layer_decay_that_matches_no_layer_is_found() -> None:
    """Lightly's benchmark looked for torchvision's "encoder_layer_" in a timm model."""
    encoder = build_encoder(EncoderShape(width=16, depth=3, heads=2, patch=8), 16, positions="learned")
    named = [*encoder.named_parameters(), ("head.weight", nn.Parameter(torch.ones(2, 2)))]

    def right(name: str) -> float:
        return 0.5 ** (4 - layer_of(name, 3))

    def wrong(name: str) -> float:
        return 0.5 if "encoder_layer_" in name else 1.0

    assert guards.of_layer_decay(parameter_groups(named, weight_decay=0.1, lr_scale=right), 3, 0.5).holds
    found = guards.of_layer_decay(parameter_groups(named, weight_decay=0.1, lr_scale=wrong), 3, 0.5)
    assert not found.holds
    assert "1 different rates for 5 layers" in found.detail
    assert guards.of_layer_decay(parameter_groups(named, weight_decay=0.1), 3, 1.0).holds
