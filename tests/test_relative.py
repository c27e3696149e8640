"""Relative positions and learned ones: attention is the float64 formula's and timm's BEiT's, everywhere."""

from __future__ import annotations

import re
from typing import Any, Literal

import pytest
import torch
from timm.models.beit import Beit
from torch import Tensor

from mae_pipe.attention import Block
from mae_pipe.autoencoder import Encoder, build_encoder
from mae_pipe.classification import fill
from mae_pipe.contracts import Grid
from mae_pipe.errors import RecipeError, RunError
from mae_pipe.masking import Mask
from mae_pipe.optim import layer_of, no_decay_finetuning
from mae_pipe.positions import BIAS, own_biases, resized_bias
from mae_pipe.recipe import EncoderShape
from mae_pipe.relative import RelativePositionBias

SHAPE = EncoderShape(width=32, depth=2, heads=2, patch=4, positions="relative", layer_scale=0.1, mask_tokens=True)


def relative(size: tuple[int, int], **changes: Any) -> Encoder:
    """With distances that matter."""
    torch.manual_seed(0)
    encoder = build_encoder(SHAPE.model_copy(update=changes), size)
    tables = [parameter for name, parameter in encoder.named_parameters() if name.endswith(BIAS)]
    assert len(tables) == (1 if encoder.rel_pos_bias is not None else 2)
    for table in tables:
        torch.nn.init.normal_(table)
    return encoder.eval()


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_attention_with_a_bias_is_the_formula(first: int, fused: bool, qk_norm: bool) -> None:
    torch.manual_seed(0)
    block: Any = Block(16, 2, qkv_bias=True, qk_norm=qk_norm, norm_layer=torch.nn.LayerNorm)
    block.attn.fused_attn = fused
    tokens = torch.randn(2, 7, 16, requires_grad=True)
    bias = torch.randn(2, 7, 7, requires_grad=True)

    def formula(tokens: Tensor, bias: Tensor) -> Tensor:
        kind = block.double()
        qkv = kind.attn.qkv(kind.norm1(tokens)).view(2, 7, 3, 2, 8)
        q, k, v = (qkv[:, :, n].transpose(1, 2) for n in range(3))
        q, k = kind.attn.q_norm(q), kind.attn.k_norm(k)
        shares = torch.softmax(torch.einsum("bhqe,bhke->bhqk", q, k) / 8**0.5 + bias, dim=-1)
        seen = tokens + kind.attn.proj(torch.einsum("bhqk,bhke->bqhe", shares, v).flatten(2))
        return (seen + kind.mlp(kind.norm2(seen)))[:, first:]

    found = block(tokens, first, bias)
    gradients = torch.autograd.grad(found.square().sum(), (tokens, bias))
    tokens64, bias64 = tokens.detach().double().requires_grad_(), bias.detach().double().requires_grad_()
    expected = formula(tokens64, bias64)
    assert torch.allclose(found.double(), expected, atol=1e-5)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected.square().sum(), (tokens64, bias64)), strict=True):
        assert torch.allclose(ours.double(), theirs, atol=1e-4)


@pytest.mark.parametrize("positions", ["relative", "relative_per_block"])
@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_the_encoder_is_timms_beit(size: tuple[int, int], positions: str) -> None:
    ours = relative(size, positions=positions)
    theirs = Beit(
        img_size=size, patch_size=4, num_classes=0, global_pool="", embed_dim=32, depth=2, num_heads=2, init_values=0.1,
        use_abs_pos_emb=False, use_shared_rel_pos_bias=positions == "relative",
        use_rel_pos_bias=positions == "relative_per_block",
    ).eval()  # fmt: skip
    given: dict[str, Tensor] = {}
    for name, weight in ours.state_dict().items():
        if name.endswith("qkv.bias"):  # a bias of keys shifts all of a softmax's numbers alike
            q, _, v = weight.chunk(3)
            given |= {name.replace("qkv.bias", "q_bias"): q, name.replace("qkv.bias", "v_bias"): v}
        elif name != "mask_token":
            scaled = re.sub(r"ls([12])\.gamma", r"gamma_\1", name)
            given[re.sub(r"(blocks\.\d+)\.rel_pos_bias", r"\1.attn", scaled)] = weight
    theirs.load_state_dict(given)
    images = torch.randn(3, 3, *size)
    assert torch.allclose(ours(images), theirs.forward_features(images), atol=1e-5)


def test_the_table_tells_the_distance() -> None:
    """Each entry of the bias is the row of its distance, written down pair by pair."""
    grid, tokens = Grid(3, 4), 2
    bias = RelativePositionBias(grid, heads=1, class_tokens=tokens)
    with torch.no_grad():
        bias.relative_position_bias_table.copy_(torch.arange(5 * 7 + 3)[:, None])
    found = bias(grid)[0]
    for query in range(grid.size):
        for key in range(grid.size):
            down, right = query // 4 - key // 4, query % 4 - key % 4
            assert found[tokens + query, tokens + key] == (down + 2) * 7 + right + 3
    assert bool((found[:tokens, tokens:] == 35).all())
    assert bool((found[tokens:, :tokens] == 36).all())
    assert bool((found[:tokens, :tokens] == 37).all())


def test_a_mask_changes_the_order_of_tokens_only() -> None:
    """Hidden patches are replaced in place; the tokens then come as every encoder's do, in the mask's order."""
    encoder, images = relative((16, 16)), torch.randn(2, 3, 16, 16)
    assert encoder.mask_token is not None
    mask = Mask.from_scores(torch.rand(2, 16), 0.4)
    found = encoder(images, mask)
    tokens = torch.nn.functional.conv2d(
        images, encoder.patch_embed.proj.weight, encoder.patch_embed.proj.bias, stride=4
    )
    tokens = torch.where(mask.as_map()[:, :, None], encoder.mask_token, tokens.flatten(2).transpose(1, 2))
    tokens = torch.cat([encoder.cls_token.expand(2, -1, -1), tokens], dim=1)
    assert encoder.rel_pos_bias is not None
    for block in encoder.blocks:
        tokens = block(tokens, bias=encoder.rel_pos_bias(encoder.grid))
    tokens = encoder.norm(tokens)
    assert torch.allclose(found[:, 0], tokens[:, 0], atol=1e-5)
    for image in range(2):
        assert torch.allclose(found[image, 1:], tokens[image, 1:][mask.order[image]], atol=1e-5)
    lost = relative((16, 16), mask_tokens=False)
    with pytest.raises(RecipeError, match="with a mask need encoder"):
        lost(images, mask)


def test_images_of_another_size_interpolate_distances() -> None:
    encoder, other = relative((16, 16)), relative((24, 8))
    fill(other, encoder.state_dict(), Grid(4, 4))
    images = torch.randn(2, 3, 24, 8)
    assert torch.equal(encoder(images), other(images))
    table = torch.randn(7 * 7 + 3, 2)
    larger = resized_bias(table, Grid(4, 4), Grid(6, 6))
    assert len(larger) == 11 * 11 + 3
    assert torch.equal(larger[-3:], table[-3:])
    assert torch.allclose(larger[60], table[24], atol=1e-5)  # no distance stays none


def test_copies_of_a_shared_bias_are_the_same_encoder_whatever_the_size() -> None:
    """Bit by bit, also where both are interpolated, or only tokens of one block are wanted."""
    shared, other = relative((16, 16)), relative((24, 8), positions="relative_per_block")
    own = relative((16, 16), positions="relative_per_block")
    copied = own_biases(shared.state_dict(), 2)
    fill(own, copied, Grid(4, 4))
    fill(other, copied, Grid(4, 4))
    images, large = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 24, 8)
    mask = Mask.from_scores(torch.rand(2, 16), 0.4)
    assert torch.equal(own(images), shared(images))
    assert torch.equal(own(images, mask), shared(images, mask))
    assert torch.equal(own.after_blocks(images, (0, 1)), shared.after_blocks(images, (0, 1)))
    assert torch.equal(own(large), shared(large))
    assert torch.equal(other(large), shared(large))
    lost = shared.state_dict()
    del lost[BIAS]
    with pytest.raises(RunError, match=f"has no weight 'blocks.0.{BIAS}'"):
        fill(own, own_biases(lost, 2), Grid(4, 4))


def test_a_blocks_own_table_is_of_its_layer() -> None:
    name = f"blocks.1.{BIAS}"
    parameters = dict(relative((16, 16), positions="relative_per_block").named_parameters())
    assert layer_of(name, 2) == 2
    assert not no_decay_finetuning(name, parameters[name])


def test_its_table_trains_like_a_weight_at_the_full_rate() -> None:
    """As BEiT's finetuning: the shared bias belongs to the last layer, and decays."""
    parameters = dict(relative((16, 16)).named_parameters())
    assert layer_of(BIAS, 2) == 3
    assert not no_decay_finetuning(BIAS, parameters[BIAS])
    assert "pos_embed" not in parameters


@pytest.mark.parametrize("positions", [None, "fixed", "learned"])
def test_a_learned_table_begins_as_noise(positions: Literal["fixed", "learned"] | None) -> None:
    shape = EncoderShape(width=64, depth=1, heads=2, patch=4, positions="learned")
    torch.manual_seed(0)
    encoder = build_encoder(shape, 32, positions=positions)
    table = encoder.pos_embed
    assert isinstance(table, torch.nn.Parameter) == (positions != "fixed")
    assert table.shape == (1, 65, 64)
    assert float(table.detach().std()) == pytest.approx(0.02, rel=0.05)
    torch.manual_seed(0)
    usual = build_encoder(shape.model_copy(update={"positions": "sincos"}), 32).state_dict()
    assert all(torch.equal(w, usual[n]) for n, w in encoder.state_dict().items() if n != "pos_embed")
