"""The network gives the official code's numbers (golden values of facebookresearch/mae, float32)."""

from __future__ import annotations

import json
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mae_pipe.catalog import Catalog
from mae_pipe.classification import Classification
from mae_pipe.downstream import groups_of
from mae_pipe.interop.official import official_name
from mae_pipe.masking import Mask
from mae_pipe.positions import sincos_positions
from mae_pipe.recipe import (
    Chosen,
    Data,
    DecoderShape,
    Downstream,
    EncoderShape,
    MaskChoice,
    Optimizer,
    Pretrain,
    TargetChoice,
)
from mae_pipe.tasks import MaskedAutoencoder

GOLDEN = Path(__file__).parents[2] / "shared" / "golden.json"
TINY = EncoderShape(width=48, depth=2, heads=4, patch=8), DecoderShape(width=32, depth=2, heads=4)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    if not GOLDEN.is_file():
        pytest.skip(f"the golden values are not at {GOLDEN}")
    values: dict[str, Any] = json.loads(GOLDEN.read_text())
    return values


def golden_weights(module: nn.Module, name_of: Any = official_name) -> None:
    """Fill every parameter from the hash of its official name, as golden.json's 'about' says."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            official = name_of(name)
            if official == "pos_embed":
                continue
            draw = np.random.RandomState(zlib.crc32(official.encode())).standard_normal(tuple(parameter.shape))
            values = draw.astype(np.float32) * np.float32(0.02)
            if official.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
                values += 1
            parameter.copy_(torch.from_numpy(values))


def golden_images(batch: int, size: int, seed: int = 1) -> Tensor:
    draw = np.random.RandomState(seed).standard_normal((batch, 3, size, size))
    return torch.from_numpy(draw.astype(np.float32))


def golden_noise(batch: int, patches: int, seed: int = 2) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).random_sample((batch, patches)).astype(np.float32))


def build(size: int, encoder: EncoderShape, decoder: DecoderShape, ratio: float, norm: bool) -> MaskedAutoencoder:
    recipe = Pretrain(
        data=Data(size=size),
        encoder=encoder,
        decoder=decoder,
        mask=MaskChoice(ratio=ratio),
        target=TargetChoice(name="normalized_pixel" if norm else "pixel"),
    )
    task = MaskedAutoencoder.from_recipe(recipe, Catalog())
    golden_weights(task)
    return task


@pytest.mark.parametrize(
    ("name", "size", "shapes"),
    [
        ("pretrain_tiny_r75_pix", 32, TINY),
        ("pretrain_tiny_r50_norm", 32, TINY),
        ("pretrain_vit_base_pix", 224, (EncoderShape(), DecoderShape())),
    ],
)
def test_loss_gradients_mask_and_prediction_are_the_official_ones(
    golden: dict[str, Any], name: str, size: int, shapes: tuple[EncoderShape, DecoderShape]
) -> None:
    expected = golden[name]
    task = build(size, *shapes, expected["mask_ratio"], expected["norm_pix"])
    images, scores = golden_images(expected["batch"], size), golden_noise(expected["batch"], task.grid.size)

    loss = task.loss_of(images, scores)
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)

    loss.backward()  # type: ignore[no-untyped-call]
    # in float64: a float32 norm of two million numbers is itself 1e-4 off
    norms = {official_name(n): p.grad.double().norm().item() for n, p in task.named_parameters() if p.grad is not None}
    assert {name: norms[name] for name in expected["grad_norm"]} == pytest.approx(expected["grad_norm"], rel=1e-4)

    mask = Mask.from_scores(scores, task.ratio)
    assert mask.as_map().sum(1).tolist() == expected["mask_sum"]
    if expected["visible"]:
        assert mask.visible.sort().values.tolist() == expected["visible"]
    with torch.no_grad():
        prediction = task.decoder(task.encoder(images, mask), mask, everywhere=True)
    assert prediction.double().sum().item() == pytest.approx(expected["pred_sum"], rel=1e-4)
    assert prediction.double().abs().sum().item() == pytest.approx(expected["pred_abs"], rel=1e-5)
    assert prediction[0, :3, :4].flatten().tolist() == pytest.approx(expected["pred_head"], rel=1e-4, abs=1e-6)
    if expected["keys"]:
        assert {official_name(n) for n in task.state_dict()} == set(expected["keys"])


def test_twenty_optimizer_steps_follow_the_official_trace(golden: dict[str, Any]) -> None:
    expected = golden["trace_tiny"]
    task = build(32, *TINY, 0.75, norm=True)
    images = golden_images(3, 32, expected["image_seed"])
    matrices = [p for n, p in task.named_parameters() if p.dim() > 1 and not n.endswith(".bias")]
    vectors = [p for n, p in task.named_parameters() if p.dim() <= 1 or n.endswith(".bias")]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": expected["weight_decay"]}, {"params": vectors, "weight_decay": 0.0}],
        betas=tuple(expected["betas"]),
    )
    losses = []
    for step, (lr, _) in enumerate(expected["trace"]):
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss = task.loss_of(images, golden_noise(3, 16, expected["noise_seed_first"] + step))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert losses == pytest.approx([loss for _, loss in expected["trace"]], rel=1e-4)


def test_positions_are_the_official_ones(golden: dict[str, Any]) -> None:
    expected = golden["pos_embed_768_14"]
    table = sincos_positions(768, 14, 14)[0]
    assert table.double().sum().item() == pytest.approx(expected["sum"], rel=1e-6)
    columns = [0, 1, 191, 192, 383, 384, 575, 576, 767]  # the ends of: sin x, cos x, sin y, cos y
    for row, numbers in expected["rows"].items():
        assert table[int(row), columns].tolist() == pytest.approx(numbers, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [
        ("mae_vit_base_patch16", 224, EncoderShape()),
        ("mae_vit_large_patch16", 224, EncoderShape(width=1024, depth=24, heads=16)),
        ("mae_vit_huge_patch14", 224, EncoderShape(width=1280, depth=32, heads=16, patch=14)),
    ],
)
def test_parameter_counts_are_the_official_ones(
    golden: dict[str, Any], name: str, size: int, shape: EncoderShape
) -> None:
    with torch.device("meta"):
        task = MaskedAutoencoder.from_recipe(Pretrain(data=Data(size=size), encoder=shape), Catalog())
    trainable = sum(p.numel() for p in task.parameters())
    fixed = task.encoder.pos_embed.numel() + task.decoder.pos_embed.numel()
    assert {"total": trainable + fixed, "trainable": trainable} == golden[f"params_{name}"]


def classifier(encoder: EncoderShape, size: int, classes: int, **options: Any) -> Classification:
    """A finetuning task with golden weights."""
    pretrained = Pretrain(data=Data(size=size), encoder=encoder)
    tuned = Downstream(task="finetune", data=Data(size=size), head=Chosen(name="linear", options=options))
    task = Classification.from_recipe(tuned, pretrained, None, Catalog(), classes=classes)
    golden_weights(task, official_classifier_name)
    return task.eval()


def official_classifier_name(name: str) -> str:
    return name.removeprefix("encoder.").replace("head.classify.", "head.").replace("head.norm.", "fc_norm.")


@torch.no_grad()
def test_classifier_logits_from_the_class_token_are_the_official_ones(golden: dict[str, Any]) -> None:
    expected = golden["classify_vit_base_token"]
    task = classifier(EncoderShape(), 224, expected["num_classes"], pool="token")
    assert {official_classifier_name(name) for name in task.state_dict()} >= set(expected["keys"])
    logits = task.head(task.encoder(golden_images(expected["batch"], 224, expected["image_seed"])))
    assert logits.numpy() == pytest.approx(np.array(expected["logits"]), rel=0, abs=1e-5)


def test_layer_decay_and_weight_decay_are_the_official_ones_name_by_name(golden: dict[str, Any]) -> None:
    task = classifier(EncoderShape(width=32, depth=12, heads=4), 32, 10, pool="mean", layer_norm=True)
    tuned = Downstream(task="finetune", optimizer=Optimizer(layer_decay=0.75, weight_decay=0.05))
    names = {id(parameter): official_classifier_name(name) for name, parameter in task.named_parameters()}
    groups = groups_of(task, tuned)
    found = {names[id(p)]: [group["lr_scale"], group["weight_decay"]] for group in groups for p in group["params"]}
    assert set(found) == set(names.values())
    expected = golden["layer_decay_0.75"]
    assert {name: found[name] for name in expected} == expected


@torch.no_grad()
@pytest.mark.parametrize("class_tokens", [1, 2])
def test_the_global_pool_is_timms(class_tokens: int) -> None:
    """Which is the official one: its norm of the mean is ``fc_norm``, and there is no ``norm``."""
    task = classifier(TINY[0].model_copy(update={"class_tokens": class_tokens}), 32, 10, pool="mean", layer_norm=True)
    model = VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=2,
        num_heads=4,
        num_classes=10,
        reg_tokens=class_tokens - 1,
        global_pool="avg",
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    model.load_state_dict({official_classifier_name(name): weight for name, weight in task.state_dict().items()})
    images = golden_images(4, 32)
    assert torch.allclose(task.head(task.encoder(images)), model.eval()(images), rtol=0, atol=1e-5)
