"""Dropout and drop path are where timm's ViT has them: the same numbers from the same generator."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from mae_pipe import recipe
from mae_pipe.autoencoder import LayerNorm, build_encoder
from mae_pipe.errors import RecipeError

SHAPE = recipe.EncoderShape(width=32, depth=3, heads=2, patch=4)


def test_a_training_encoder_is_timms_with_the_same_generator() -> None:
    ours = build_encoder(SHAPE, 16, positions="learned", drop_path=0.3, dropout=0.2).train()
    theirs = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=32, depth=3, num_heads=2, num_classes=0, global_pool="",
        norm_layer=LayerNorm, drop_path_rate=0.3, pos_drop_rate=0.2, proj_drop_rate=0.2,
    ).train()  # fmt: skip
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = []
    for model in (ours, theirs):
        torch.manual_seed(3)
        found.append(model(images))
    assert torch.allclose(found[0], found[1], atol=1e-5)
    assert not torch.allclose(found[0], ours(images), atol=1e-2), "and it drops"
    assert torch.equal(ours.eval()(images), build_like(ours)(images)), "not in evaluation"


def build_like(encoder: torch.nn.Module) -> torch.nn.Module:
    """The same weights without any noise."""
    made = build_encoder(SHAPE, 16, positions="learned")
    made.load_state_dict(encoder.state_dict())
    return made.train()


def test_a_probe_has_none() -> None:
    with pytest.raises(RecipeError, match="dropout is for finetuning"):
        recipe.load("probe", ["dropout=0.1"])
