"""Built-in recipes made small: two steps of noisy pictures, on networks of two blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.sharding import build
from mae_pipe.tables import TokenizerShape
from mae_pipe.tokenizer.folder import About, save_tokenizer
from mae_pipe.tokenizer.network import DiscreteVae

SHORT = (
    "data.global_batch=4",
    "data.micro_batch=2",  # least that mixing and batch norm can do with
    "data.workers=0",
    "schedule.epochs=1.0",  # of 8 images: 2 steps
    "schedule.warmup_epochs=0.5",
    "saving.every_epochs=1.0",
    "logging.every_steps=1",
)


def pictures(folder: Path) -> Path:
    """8 pictures to train on and 3 to measure, of two classes, with maps of which half is which: images and shards."""
    draw = np.random.default_rng(0)
    half = np.repeat(np.array([[0] * 20 + [1] * 20], np.uint8), 40, axis=0)
    for split, count in (("train", 8), ("val", 3)):
        for number in range(count):
            pixels = draw.integers(0, 256, (40, 40, 3)).astype(np.uint8)
            for kind, picture in (("images", pixels), ("maps", half)):
                path = folder / kind / split / "ab"[number % 2] / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
    build(folder / "images", folder / "shards", catalog=Catalog(), workers=1, maps=folder / "maps")
    return folder


def narrow(name: str, depth: int = 2) -> list[str]:
    """Changes that make a pretraining recipe's networks two heads of four numbers wide."""
    loaded = recipe.load(name)
    assert isinstance(loaded, recipe.Pretrain)
    parts = ["encoder", *({"decoder"} & loaded.model_fields_set)]  # a method without one has no such table
    widths = [change for part in parts for change in (f"{part}.width=8", f"{part}.heads=2")]
    heads = [f"method.options.{name}=16" for name in ("out", "hidden", "bottleneck") if name in loaded.method.options]
    return [*widths, *heads, f"encoder.depth={depth}", *(f"{part}.depth=1" for part in parts[1:])]


def small_tokenizer(folder: Path) -> Path:
    """One of 16 tokens, as it is initialised."""
    shape = TokenizerShape(codebook=16, code_width=4, width=4, downsampling=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = DiscreteVae(shape).state_dict()
    save_tokenizer(folder, About(layout="mae-pipe", codebook=16, downsampling=4, shape=shape), weights)
    return folder


def settings(changes: list[str]) -> list[str]:
    """As words of a command."""
    return [word for change in changes for word in ("--set", change)]
