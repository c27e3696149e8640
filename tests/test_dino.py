"""DINO: its loss by an independent formula, its schedules, what neither ranks nor micro-batches change, collapse."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mae_pipe.autoencoder import build_encoder
from mae_pipe.catalog import Catalog
from mae_pipe.contracts import View
from mae_pipe.data.batch import Batch
from mae_pipe.errors import PluginError
from mae_pipe.recipe import EncoderShape
from mae_pipe.views import Crop

VIEW = View(8, 8, (4, 4), (0.5,) * 3, (0.25,) * 3)


def tiny(*, epochs: float = 10.0, shape: EncoderShape | None = None, **options: Any) -> Any:
    """DINO of a width of 32 on images of 8 x 8 pixels, small views too."""
    torch.manual_seed(0)
    encoder = build_encoder(shape or EncoderShape(width=32, depth=1, heads=2, patch=4), 8)
    chosen = {"out": 64, "hidden": 64, "bottleneck": 16, "local_crops": 2, "local_size": 8, **options}
    made = Catalog().build("method", "dino", chosen, encoder=encoder, view=VIEW, epochs=epochs)
    return made.bind(view=VIEW, seed=0)


def batch(pixels: Tensor) -> Batch:
    """Of [B, V, C, H, W]."""
    numbers = torch.arange(len(pixels))
    return Batch(pixels.to(torch.uint8), numbers, numbers, numbers)


def noise(images: int, views: int = 4, seed: int = 0) -> Batch:
    return batch(torch.randint(0, 256, (images, views, 3, 8, 8), generator=torch.Generator().manual_seed(seed)))


def outputs_by_hand(encoder: Any, head: dict[str, Tensor], images: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, K], in float64."""
    at = copy.deepcopy(encoder).double()(images.double())[:, 0]
    for layer in (0, 2, 4):
        at = at @ head[f"layers.{layer}.weight"].double().T + head[f"layers.{layer}.bias"].double()
        at = at if layer == 4 else at * 0.5 * (1 + torch.erf(at / math.sqrt(2)))
    at = at / at.square().sum(dim=1, keepdim=True).sqrt()
    rows = head["prototypes"].double()
    return at @ (rows / rows.square().sum(dim=1, keepdim=True).sqrt()).T


def test_views_are_those_of_the_papers_code() -> None:
    one, other, *small = tiny(local_crops=10).views
    assert [(view.size, view.scale) for view in (one, other)] == [(None, None)] * 2  # as the recipe says
    assert {(view.size, view.scale) for view in small} == {(8, (0.05, 0.25))}
    assert [(v.blur, v.solarize) for v in (one, other, *small)] == [(1.0, 0.0), (0.1, 0.2), *[(0.5, 0.0)] * 10]
    assert {(v.jitter, v.jitter_share, v.grey, v.sigma) for v in (one, other, *small)} == {
        ((0.4, 0.4, 0.2, 0.1), 0.8, 0.2, (0.1, 2.0))
    }


@torch.no_grad()
def test_the_loss_and_its_centre_are_the_papers_formula() -> None:
    task = tiny(teacher_warmup_epochs=4.0, local_crops=3)
    torch.manual_seed(1)
    for parameter in task.parameters():  # a teacher that differs, and a head that tells images apart
        parameter.add_(0.2 * torch.randn_like(parameter))
        task.sharpened.centre.normal_(std=0.3)
    centre = task.sharpened.centre[0].double()
    whole: list[Tensor] = []
    for epoch, temperature in ((0, 0.04), (2, 0.055), (5, 0.07)):
        if epoch:
            task.after_step(epoch / 10)  # moves the centre by what was seen, and the temperature
            centre = 0.9 * centre + 0.1 * torch.cat(whole).mean(dim=0)
            assert torch.allclose(task.sharpened.centre[0].double(), centre, atol=1e-6)
            whole.clear()
        for part in (0, 1):
            seen = noise(6, views=5, seed=10 * epoch + part)
            views = task.images_of(seen)
            said = [outputs_by_hand(task.encoder, task.head.state_dict(), view) for view in views]
            teacher, head = task.teacher.part, task.teacher_head.part.state_dict()
            taught = [outputs_by_hand(teacher, head, view) for view in views[:2]]
            total, pairs = torch.zeros((), dtype=torch.float64), 0
            for i, one in enumerate(taught):
                shares = torch.exp((one - centre) / temperature)
                shares = shares / shares.sum(dim=1, keepdim=True)
                for j, other in enumerate(said):
                    if i != j:
                        odds = torch.exp(other / 0.1)
                        logs = torch.log(odds / odds.sum(dim=1, keepdim=True))
                        total, pairs = total - (shares * logs).sum(dim=1).mean(), pairs + 1
            assert pairs == 8
            found = task(seen)
            assert found.dtype == torch.float32
            assert float(found) == pytest.approx(float(total / pairs), rel=1e-5)
            whole += taught


def test_the_teacher_follows_by_a_momentum_that_rises_and_gets_no_gradient() -> None:
    task = tiny(momentum=0.9)
    task(noise(4)).backward()
    assert all(p.grad is None for name, p in task.named_parameters() if name.startswith("teacher"))
    assert all(p.grad is not None for name, p in task.named_parameters() if not name.startswith("teacher"))
    before = {name: p.clone() for name, p in task.named_parameters()}
    with torch.no_grad():
        for name, parameter in task.named_parameters():
            if not name.startswith("teacher"):
                parameter.add_(1.0)
    for progress in (0.5, 1.0):
        task.after_step(progress)
        for name, parameter in task.named_parameters():
            if name.startswith("teacher"):
                moved = 1 - (0.9 + 0.1 * 0.5)  # half of the cosine; at the end it does not move
                assert torch.allclose(parameter, before[name] + moved, atol=1e-6)


def test_only_the_student_drops_paths() -> None:
    task = tiny(shape=EncoderShape(width=32, depth=4, heads=2, patch=4, drop_path=0.5))
    images = F.interpolate(torch.randn(8, 3, 2, 2), size=8)
    task.train()
    assert not torch.equal(task.encoder(images), task.encoder(images))
    assert torch.equal(task.features(images), task.features(images))
    assert torch.equal(task.features(images), task.teacher.part(images)[:, 0])


def test_a_step_that_is_skipped_never_reaches_the_centre() -> None:
    task = tiny()
    with torch.no_grad():
        weight = task.teacher_head.part.layers[4].bias
        weight.fill_(math.inf)
        task(noise(4))
        assert not task.sharpened.pending.isfinite().all()
        task.after_skip()
        assert torch.equal(task.sharpened.pending, torch.zeros_like(task.sharpened.pending))
        weight.zero_()
        task(noise(4))
        expected = task.sharpened.pending.clone()
    task.eval()
    task(noise(4))
    assert torch.equal(task.sharpened.pending, expected)  # nor what is only looked at
    task.after_step(0.1)
    assert not task.sharpened.pending.any()
    assert task.sharpened.centre.isfinite().all()


def test_in_bfloat16_what_moves_slowly_stays_float32_and_says_nearly_the_same() -> None:
    exact, rough = tiny(), tiny().bfloat16()
    for name, tensor in rough.state_dict().items():
        trained = name in dict(rough.named_parameters()) and not name.startswith("teacher")
        assert tensor.dtype == (torch.bfloat16 if trained else exact.state_dict()[name].dtype), name
    assert float(rough(noise(8)).detach()) == pytest.approx(float(exact(noise(8)).detach()), rel=0.03)
    for task in (exact, rough):
        task.after_step(0.1)
    assert torch.allclose(rough.sharpened.centre, exact.sharpened.centre, atol=0.01)
    assert rough.signs() == pytest.approx(exact.signs(), rel=0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"local_size": 10}, "local_size must be a multiple of the patch"),
        ({"out": 1}, "must be 2 or more"),
        ({"teacher_temperature": [0.0, 0.07]}, "temperatures must be above 0"),
        ({"shape": EncoderShape(width=32, depth=1, heads=2, patch=4, class_tokens=0)}, "the encoder has none"),
    ],
)
def test_what_it_cannot_learn_with_is_refused_in_words(options: dict[str, Any], words: str) -> None:
    with pytest.raises(PluginError, match=words):
        tiny(**options)


def signs_after(steps: int, **options: Any) -> dict[str, float]:
    """Of training on 64 coloured patterns with noise, sixteen a step."""
    task = tiny(teacher_warmup_epochs=0.0, momentum=0.95, **options)
    task.views = (Crop(),) * 4  # their colours are what tells the patterns apart
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=5e-3)
    draw = torch.Generator().manual_seed(1)
    patterns = torch.randint(0, 256, (64, 3, 2, 2), generator=draw).float()
    for step in range(steps):
        images = F.interpolate(patterns[torch.randint(0, 64, (16,), generator=draw)], size=8, mode="bilinear")
        seen = images[:, None] + 25 * torch.randn(16, 4, 3, 8, 8, generator=draw)
        loss = task(batch(seen.clamp(0, 255)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        task.after_step((step + 1) / steps)
    found: dict[str, float] = task.signs()
    return found


def test_without_centring_or_sharpening_it_collapses_and_its_signs_tell() -> None:
    assert tiny().signs() == {}
    sharp = {"teacher_temperature": [0.04, 0.04]}
    learns = signs_after(120, **sharp)
    assert learns["mean_output_entropy"] > 0.25
    assert learns["mean_output_entropy"] > learns["teacher_entropy"] + 0.1  # it tells images apart
    one_for_all = signs_after(120, **sharp, centring=False)
    assert one_for_all["mean_output_entropy"] < 0.05
    all_alike = signs_after(120, teacher_temperature=[0.2, 0.2])
    assert all_alike["teacher_entropy"] > 0.999
    assert max(one_for_all["teacher_student_kl"], all_alike["teacher_student_kl"]) < 0.01
