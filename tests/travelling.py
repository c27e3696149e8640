"""Models with random weights that tests of import and export send round, and what other code should compute of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from mae_pipe import runs
from mae_pipe.autoencoder import build_encoder
from mae_pipe.catalog import Catalog
from mae_pipe.classification import Classification, fill, read_weights
from mae_pipe.interop.exports import send_out
from mae_pipe.interop.imports import bring_in
from mae_pipe.interop.leaving import model_of_run
from mae_pipe.interop.model import Head, Model, shapes_of
from mae_pipe.recipe import Data, DecoderShape, Downstream, EncoderShape, Pretrain
from mae_pipe.tasks import view_of

Weights = dict[str, Tensor]
TINY = Model({}, EncoderShape(width=48, depth=2, heads=4, patch=8), Data(size=32))
WHOLE = Model({}, TINY.encoder, TINY.data, decoder=DecoderShape(width=32, depth=2, heads=4))
HEADS: Any = {"heads": 4, "decoder_heads": 4}


def drawn(model: Model, seed: int = 0) -> Weights:
    """Random weights, positions too, of the sizes that trained ones have."""
    draw = torch.Generator().manual_seed(seed)
    return {n: 0.05 * torch.randn(s, generator=draw) + float(_scale(n)) for n, s in shapes_of(model).items()}


def _scale(name: str) -> bool:
    return "norm" in name and name.endswith("weight")


def classifier(pool: Any = "mean", norm: Any = "own", classes: int = 7) -> Model:
    return Model({}, TINY.encoder, TINY.data, head=Head(pool, norm, tuple(map(str, range(classes)))))


def saved(weights: Any, path: Path) -> Path:
    """A .pth file."""
    torch.save(weights, path)
    return path


def in_and_out(weights: Any, tmp_path: Path, form: str, **options: Any) -> Path:
    """An official file, imported and exported again."""
    bring_in(saved(weights, tmp_path / "in.pth"), tmp_path / "run", **(HEADS | options))
    return send_out(tmp_path / "run", form, tmp_path / f"out-{form}")[0]


def images(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(5))


def same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """The same names with the same bytes."""
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


def features_of(run: Path, pixels: Tensor) -> Tensor:
    """What a probe's encoder computes of normalised images."""
    recipe = runs.read_recipe(run)
    assert isinstance(recipe, Pretrain)
    encoder = build_encoder(recipe.encoder, recipe.data.sides, channels=recipe.data.channels)
    fill(encoder, read_weights(run)[0], view_of(recipe.data, recipe.encoder).grid)
    with torch.no_grad():
        out: Tensor = encoder.eval()(pixels)
    return out


def logits_of(run: Path, pixels: Tensor) -> Tensor:
    """What a finetuned run computes, its head built by the catalog."""
    recipe = runs.read_recipe(run)
    assert isinstance(recipe, Downstream)
    model = model_of_run(run)
    assert model.head is not None
    pretrained = Pretrain(data=Data(size=recipe.data.size), encoder=model.encoder)
    task = Classification.from_recipe(recipe, pretrained, None, Catalog(), classes=len(model.head.classes))
    task.load_state_dict(load_file(run / "model.safetensors"))
    with torch.no_grad():
        out: Tensor = task.eval().head(task.tokens_of(pixels))
    return out


def near(ours: Tensor, theirs: Tensor, within: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) < within
