"""The network, against timm's own forward and against formulas written out in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mae_pipe.attention import Block, choose_attention
from mae_pipe.autoencoder import Encoder, build_encoder
from mae_pipe.catalog import Catalog
from mae_pipe.contracts import Grid, MaskSampler
from mae_pipe.data.batch import Batch
from mae_pipe.errors import MaePipeError, PluginError, RecipeError
from mae_pipe.interop.official import own_name, to_official
from mae_pipe.masking import Mask
from mae_pipe.patches import patchify
from mae_pipe.pixels import normalise, pixels_of
from mae_pipe.positions import sincos_positions
from mae_pipe.recipe import Data, DecoderShape, EncoderShape, MaskChoice, Pretrain, TargetChoice
from mae_pipe.rng import Rng
from mae_pipe.tasks import MaskedAutoencoder

SIZE, PATCH, SIDE = 32, 8, 4
ENCODER = EncoderShape(width=48, depth=2, heads=4, patch=PATCH)
DECODER = DecoderShape(width=32, depth=2, heads=4)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def recipe_of(**changes: Any) -> Pretrain:
    return Pretrain(data=Data(size=SIZE), encoder=ENCODER, decoder=DECODER).model_copy(update=changes)


def task_of(**changes: Any) -> MaskedAutoencoder:
    return MaskedAutoencoder.from_recipe(recipe_of(**changes), Catalog())


def batch_of(count: int, first: int = 0) -> Batch:
    """Images by position: the same position always has the same pixels."""
    draw = [np.random.default_rng(first + i).integers(0, 256, (3, SIZE, SIZE), np.uint8) for i in range(count)]
    positions = torch.arange(first, first + count)
    return Batch(torch.from_numpy(np.stack(draw)), torch.zeros(count, dtype=torch.int64), positions, positions)


def images_of(count: int) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


def test_without_a_mask_the_encoder_is_timms_vision_transformer() -> None:
    ours = build_encoder(ENCODER, SIZE).eval()
    theirs = VisionTransformer(
        img_size=SIZE, patch_size=PATCH, embed_dim=48, depth=2, num_heads=4, num_classes=0, global_pool=""
    ).eval()
    theirs.load_state_dict(ours.state_dict())  # strict: the same names and shapes
    images = images_of(3)
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(images), atol=1e-5)


@pytest.mark.parametrize("positions", ["fixed", "learned"])
def test_a_masked_encoder_is_timms_blocks_on_the_visible_patches(positions: Any) -> None:
    encoder = build_encoder(ENCODER, SIZE, positions=positions).eval()
    images, scores = images_of(2), torch.rand(2, 16, generator=torch.Generator().manual_seed(4))
    mask = Mask.from_scores(scores, 0.75)
    convolution = torch.nn.Conv2d(3, 48, PATCH, stride=PATCH)
    convolution.load_state_dict(encoder.patch_embed.proj.state_dict())
    with torch.no_grad():
        embedded = convolution(images).flatten(2).transpose(1, 2) + encoder.pos_embed[:, 1:]
        rows = [[encoder.cls_token[0, 0] + encoder.pos_embed[0, 0], *embedded[b, mask.visible[b]]] for b in range(2)]
        expected = encoder.norm(encoder.blocks(torch.stack([torch.stack(row) for row in rows])))
        assert torch.allclose(encoder(images, mask), expected, atol=1e-5)


def test_the_encoder_sees_visible_patches_only() -> None:
    encoder = build_encoder(ENCODER, SIZE).eval()
    seen: list[int] = []
    encoder.blocks[0].register_forward_hook(lambda module, given, out: seen.append(given[0].shape[1]))
    images, mask = images_of(2), Mask.from_scores(torch.rand(2, 16), 0.75)
    with torch.no_grad():
        before = encoder(images, mask)
        hidden = mask.as_map().view(2, 1, SIDE, SIDE).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
        after = encoder(torch.where(hidden, torch.full_like(images, torch.nan), images), mask)
    assert torch.equal(before, after)
    assert seen == [1 + 4, 1 + 4]


def test_the_decoder_gives_what_the_official_order_of_tokens_gives() -> None:
    """Tokens put back in place between encoder and decoder, as the official code does it."""
    task = task_of().eval()
    images, mask = images_of(2), Mask.from_scores(torch.rand(2, 16), 0.75)
    decoder = task.decoder
    with torch.no_grad():
        tokens = task.encoder(images, mask)
        embedded = decoder.embed(tokens)
        assert decoder.mask_token is not None
        placed = decoder.mask_token.expand(2, 16, -1).clone()
        for image in range(2):
            placed[image, mask.visible[image]] = embedded[image, 1:]
        whole = torch.cat([embedded[:, :1], placed], dim=1) + decoder.pos_embed
        for block in decoder.blocks:
            whole = block(whole)
        expected = decoder.predict(decoder.norm(whole))[:, 1:]
        everywhere = decoder(tokens, mask, everywhere=True)
        assert torch.allclose(everywhere, expected, atol=1e-5)
        assert torch.allclose(decoder(tokens, mask), mask.hidden_of(expected), atol=1e-5)


@pytest.mark.parametrize("target", ["pixel", "normalized_pixel"])
@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.9])
def test_the_loss_is_the_papers_formula_in_float64(target: str, ratio: float) -> None:
    task = task_of(target=TargetChoice(name=target), mask=MaskChoice(ratio=ratio)).eval()
    images, noise = images_of(3), torch.rand(3, 16, generator=torch.Generator().manual_seed(5))
    mask = Mask.from_scores(noise, ratio)
    with torch.no_grad():
        loss = task.loss_of(images, noise).item()
        prediction = task.decoder(task.encoder(images, mask), mask, everywhere=True).double().numpy()

    pixels, total, hidden = images.double().numpy(), 0.0, 0
    for b in range(3):
        kept = np.argsort(noise[b].numpy(), kind="stable")[: int(16 * (1 - ratio))]
        for n in set(range(16)) - set(kept.tolist()):
            row, col = PATCH * (n // SIDE), PATCH * (n % SIDE)
            patch = np.moveaxis(pixels[b, :, row : row + PATCH, col : col + PATCH], 0, -1).ravel()
            if target == "normalized_pixel":
                patch = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
            total += float(np.mean((prediction[b, n] - patch) ** 2))
            hidden += 1
    assert hidden == mask.hidden.numel()
    assert loss == pytest.approx(total / hidden, rel=1e-5)


def test_predicting_nothing_costs_767_in_768() -> None:
    recipe = Pretrain(data=Data(size=64), encoder=EncoderShape(width=48, depth=1, heads=4), decoder=DECODER)
    task = MaskedAutoencoder.from_recipe(recipe, Catalog())
    torch.nn.init.zeros_(task.decoder.predict.weight)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert task.loss_of(images, torch.rand(2, 16)).item() == pytest.approx(767 / 768, rel=1e-5)


def test_the_first_weights_follow_the_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = task_of().state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    again, other = task_of().state_dict(), task_of(seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["encoder.cls_token"], other["encoder.cls_token"])


def test_the_first_weights_are_the_official_ones_in_kind() -> None:
    task = task_of()
    for name, weight in task.named_parameters():
        if "norm" in name:
            assert torch.equal(weight, torch.full_like(weight, float(name.endswith("weight")))), name
        elif name.endswith("token"):
            assert 0.01 < weight.std().item() < 0.03, name
        elif name.endswith("weight"):
            fan_out, fan_in = weight.flatten(1).shape
            bound = (6 / (fan_in + fan_out)) ** 0.5
            assert 0.9 * bound < weight.abs().max().item() <= bound, name
        elif name != "encoder.patch_embed.proj.bias":
            assert not weight.any(), name


def test_an_images_loss_does_not_depend_on_its_batch() -> None:
    task = task_of()
    with torch.no_grad():
        parts = [task(batch_of(2, first)) for first in (0, 2, 4)]
        whole = task(batch_of(6))
    assert whole.item() == pytest.approx(sum(part.item() for part in parts) / 3, rel=1e-6)


class _NoWaiting(TorchDispatchMode):
    """Refuses the operations that make the host wait for a device, or shapes depend on data."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "_unique", "masked_select")), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sampler", ["random", "block", "grid"])
def test_a_step_never_waits_for_the_device(sampler: str) -> None:
    task = task_of(mask=MaskChoice(name=sampler))
    batch = batch_of(2)
    with _NoWaiting():
        task(batch).backward()


def test_a_bfloat16_engine_keeps_positions_and_loss_in_float32() -> None:
    task, batch = task_of(), batch_of(4)
    with torch.no_grad():
        precise = task(batch)
        task.bfloat16()
        rough = task(batch)
    assert task.encoder.cls_token.dtype == task.decoder.predict.weight.dtype == torch.bfloat16
    for table, width in ((task.encoder.pos_embed, 48), (task.decoder.pos_embed, 32)):
        assert torch.equal(table, sincos_positions(width, SIDE, SIDE))
    assert precise.dtype == rough.dtype == torch.float32
    assert rough.item() == pytest.approx(precise.item(), rel=0.02)


def test_positions_are_a_buffer_when_fixed_and_a_parameter_when_learned() -> None:
    fixed, learned = build_encoder(ENCODER, SIZE), build_encoder(ENCODER, SIZE, positions="learned")
    assert "pos_embed" not in dict(fixed.named_parameters())
    assert "pos_embed" in dict(learned.named_parameters())
    learned.load_state_dict(fixed.state_dict())
    learned(images_of(1)).sum().backward()
    assert learned.pos_embed.grad is not None


def test_positions_tell_columns_first_then_rows() -> None:
    table = sincos_positions(8, 3, 5)[0].double().numpy()
    for n in range(15):
        angles = [place * omega for place in (n % 5, n // 5) for omega in (1.0, 0.01)]
        expected = [f(angles[2 * half + i]) for half in (0, 1) for f in (np.sin, np.cos) for i in (0, 1)]
        assert table[1 + n] == pytest.approx(expected, abs=1e-7)
    assert not table[0].any()


def test_attention_is_chosen_by_device_and_precision_and_gives_the_same_tokens() -> None:
    encoder: Any = build_encoder(ENCODER, SIZE).eval()
    images = images_of(2)
    chosen = []
    for move in (lambda: encoder, encoder.bfloat16, encoder.float, lambda: encoder.bfloat16().to("meta")):
        move()
        chosen.append([block.attn.fused_attn for block in encoder.blocks])
    assert chosen == [[True] * 2, [False] * 2, [True] * 2, [True] * 2]

    encoder = build_encoder(ENCODER, SIZE).eval()
    with torch.no_grad():
        fused = encoder(images)
        choose_attention(encoder, torch.bfloat16)
        assert not any(block.attn.fused_attn for block in encoder.blocks)
        assert torch.allclose(encoder(images), fused, atol=1e-5)


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize(
    ("options", "fused"), [({}, False), ({}, True), ({"qk_norm": True, "init_values": 0.1}, False)]
)
def test_a_block_and_its_gradients_are_timms_on_the_tokens_that_are_kept(first: int, options: Any, fused: bool) -> None:
    torch.manual_seed(0)
    given = {"qkv_bias": True, "norm_layer": torch.nn.LayerNorm, **options}
    ours: Any = Block(48, 4, **given).double()
    theirs: Any = TimmBlock(48, 4, **given).double()
    theirs.load_state_dict(ours.state_dict())
    ours.attn.fused_attn, theirs.attn.fused_attn = fused, False
    tokens = [torch.randn(2, 7, 48, dtype=torch.double).requires_grad_()]
    tokens.append(tokens[0].detach().clone().requires_grad_())
    kept, expected = ours(tokens[0], first), theirs(tokens[1])[:, first:]
    weight = torch.randn_like(kept)
    for out in (kept, expected):
        (out * weight).sum().backward()
    assert torch.allclose(kept, expected, rtol=0, atol=1e-13)
    pairs = zip([tokens[0], *ours.parameters()], [tokens[1], *theirs.parameters()], strict=True)
    for mine, its in pairs:
        assert torch.allclose(mine.grad, its.grad, rtol=0, atol=1e-12)


def test_drop_path_rises_to_what_was_asked_for() -> None:
    shape = ENCODER.model_copy(update={"depth": 3, "drop_path": 0.3})

    def rates(encoder: Encoder) -> list[float]:
        return [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.blocks]

    assert rates(build_encoder(shape, SIZE)) == pytest.approx([0.0, 0.15, 0.3])
    assert rates(build_encoder(shape, SIZE, drop_path=0.0)) == [0.0] * 3


def test_training_on_one_batch_learns_it() -> None:
    task, batch = task_of(target=TargetChoice(name="pixel")), batch_of(2)
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = task(batch)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_a_reconstruction_repeats_the_masks_of_the_loss_and_leaves_training_on() -> None:
    task, batch = task_of().train(), batch_of(3)
    made = task.reconstruct(batch)
    scores = task.sampler.scores(made.images, task.grid, task.rng(batch, "mask"))
    assert torch.equal(made.mask.order, Mask.from_scores(scores, 0.75).order)
    assert made.picture.shape == made.images.shape == (3, 3, SIZE, SIZE)
    assert torch.equal(made.images, normalise(batch.pixels, *IMAGENET))
    assert not made.picture.requires_grad
    assert task.training
    assert "original patch" in made.caption


def test_pixels_survive_normalising_and_its_inverse() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    images = normalise(pixels, *IMAGENET)
    expected = (pixels.double() / 255 - torch.tensor(IMAGENET[0], dtype=torch.float64).view(3, 1, 1)) / torch.tensor(
        IMAGENET[1], dtype=torch.float64
    ).view(3, 1, 1)
    assert images.dtype == torch.float32
    assert torch.allclose(images.double(), expected, atol=1e-6)
    assert torch.equal(pixels_of(images, *IMAGENET), pixels)


def test_official_names_go_out_and_come_back() -> None:
    weights = task_of().state_dict()
    official = to_official(weights)
    assert {"pos_embed", "mask_token", "decoder_pos_embed", "decoder_blocks.1.attn.qkv.weight"} <= set(official)
    assert {own_name(name): id(w) for name, w in official.items()} == {name: id(w) for name, w in weights.items()}
    theirs = VisionTransformer(img_size=SIZE, patch_size=PATCH, embed_dim=48, depth=2, num_heads=4, num_classes=0)
    theirs.load_state_dict({name: w for name, w in official.items() if own_name(name) == f"encoder.{name}"})
    assert own_name("head.weight") is None


class _Short(MaskSampler):
    def scores(self, images: Tensor, grid: Grid, rng: Rng) -> Tensor:
        return rng.uniform(grid.size - 1)


def test_a_sampler_that_breaks_its_contract_is_named() -> None:
    task = task_of()
    task.sampler = _Short()
    with pytest.raises(PluginError, match=r"_Short gave scores of shape \[2, 15\]; expected \[2, 16\]"):
        task(batch_of(2))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"mask": MaskChoice(ratio=0.0)}, RecipeError),
        ({"mask": MaskChoice(ratio=0.99)}, RecipeError),
        ({"mask": MaskChoice(name="rnadom")}, PluginError),
        ({"target": TargetChoice(name="pixel", options={"colour": 1})}, PluginError),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_sentence(changes: dict[str, Any], error: type[MaePipeError]) -> None:
    with pytest.raises(error) as caught:
        task_of(**changes)
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)  # ...; what to do


def test_images_that_do_not_split_into_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="30 x 30 pixels do not split into patches of 8 x 8"):
        build_encoder(ENCODER, SIZE)(torch.zeros(1, 3, 30, 30))


def test_learned_positions_learn_from_images_of_any_size() -> None:
    assert not isinstance(build_encoder(ENCODER, SIZE).pos_embed, nn.Parameter)
    encoder = build_encoder(ENCODER.model_copy(update={"positions": "learned"}), SIZE)
    encoder(torch.randn(2, 3, 2 * PATCH, 5 * PATCH)).square().sum().backward()
    assert encoder.pos_embed.grad is not None
    assert bool(encoder.pos_embed.grad.any(dim=2).all())


@pytest.mark.parametrize(
    ("change", "timms"),
    [
        ({"class_tokens": 4}, {"reg_tokens": 3}),
        ({"class_tokens": 0}, {"class_token": False}),
        ({"qk_norm": True}, {"qk_norm": True}),
        ({"layer_scale": 0.1}, {"init_values": 0.1}),
        ({"patch": (8, 4), "mlp_ratio": 2.5}, {"patch_size": (8, 4), "mlp_ratio": 2.5}),
    ],
)
@pytest.mark.parametrize(("size", "channels"), [((32, 32), 3), ((16, 48), 1), ((32, 16), 6)])
def test_every_shape_is_timms(
    change: dict[str, Any], timms: dict[str, Any], size: tuple[int, int], channels: int
) -> None:
    ours = build_encoder(ENCODER.model_copy(update=change), size, channels=channels, positions="learned").eval()
    given = {"patch_size": PATCH, **timms}
    theirs = VisionTransformer(
        img_size=size, in_chans=channels, num_classes=0, global_pool="", embed_dim=48, depth=2, num_heads=4, **given
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs.forward_features(images), atol=1e-5)


def test_mask_tokens_in_the_encoder_are_all_that_it_sees_of_hidden_patches() -> None:
    """Table 1c's encoder: hidden patches are replaced after the embedding, as BEiT does it."""
    task = task_of(encoder=ENCODER.model_copy(update={"mask_tokens": True})).eval()
    encoder, images = task.encoder, images_of(2)
    mask = Mask.from_scores(torch.rand(2, 16), 0.75)
    assert task.decoder.mask_token is None
    assert encoder.mask_token is not None
    with torch.no_grad():
        patches = F.conv2d(images, encoder.patch_embed.proj.weight, encoder.patch_embed.proj.bias, stride=PATCH)
        patches = patches.flatten(2).transpose(1, 2)  # [B, N, D]
        patches = torch.where(mask.as_map()[..., None], encoder.mask_token, patches) + encoder.pos_embed[:, 1:]
        first = (encoder.cls_token + encoder.pos_embed[:, :1]).expand(2, -1, -1)
        expected = encoder.norm(encoder.blocks(torch.cat([first, patches], dim=1)))
        found = encoder(images, mask)
        assert found.shape == (2, 17, 48)
        assert torch.allclose(
            found[:, 1:], expected[:, 1:].gather(1, mask.order[..., None].expand(-1, -1, 48)), atol=1e-5
        )
        decoder = task.decoder
        placed = decoder.embed(expected) + decoder.pos_embed
        for block in decoder.blocks:
            placed = block(placed)
        everywhere = decoder.predict(decoder.norm(placed[:, 1:]))
        assert torch.allclose(decoder(found, mask, everywhere=True), everywhere, atol=1e-5)
        assert torch.allclose(decoder(found, mask), mask.hidden_of(everywhere), atol=1e-5)
    assert torch.allclose(encoder(images), encoder(images, Mask.from_scores(torch.zeros(2, 16), 0.0)), atol=1e-6)


def test_the_loss_on_all_patches_is_the_mean_over_all_in_float64() -> None:
    task, batch = task_of(target=TargetChoice(name="pixel", loss_on="all")).eval(), batch_of(3)
    made = task.reconstruct(batch)
    truth, guess = patchify(made.images, PATCH).double(), patchify(made.picture, PATCH).double()
    assert task(batch).item() == pytest.approx(float((guess - truth).square().mean()), rel=1e-5)


def test_a_model_of_several_class_tokens_and_no_square_reconstructs() -> None:
    shape = ENCODER.model_copy(update={"class_tokens": 3, "patch": (8, 16)})
    data = Data(size=(16, 64), mean=(0.5,), std=(0.5,))
    task = MaskedAutoencoder.from_recipe(recipe_of(encoder=shape, data=data), Catalog())
    batch = Batch(torch.randint(0, 256, (2, 1, 16, 64), dtype=torch.uint8), *(torch.arange(2),) * 3)
    made = task.reconstruct(batch)
    assert made.picture.shape == (2, 1, 16, 64)
    assert made.mask.order.shape == (2, 8)
    task(batch).backward()
    assert all(p.grad is not None for p in task.parameters() if p.requires_grad)
