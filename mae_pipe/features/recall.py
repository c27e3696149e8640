"""Features in place of pixels: a head trains on what the frozen encoder said once, in the same loop and order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from mae_pipe.classification import UNTRAINED, Classification
from mae_pipe.data.batch import Batch
from mae_pipe.data.stream import Plan, Stream
from mae_pipe.errors import RecipeError
from mae_pipe.features.embed import CACHE, described, in_words
from mae_pipe.features.extract import extract
from mae_pipe.features.folder import Features
from mae_pipe.features.identity import Kind
from mae_pipe.fitting import Plain
from mae_pipe.recipe import Downstream, Pretrain

Say = Callable[[str], None]


def recall(
    task: Classification,
    recipe: Downstream,
    pretrained: Pretrain,
    stream: Stream,
    held_out: Stream,
    *,
    run: Path,
    fingerprint: str,
    views: int = 0,
    say: Say = lambda text: None,
) -> tuple[Features, Features]:
    """Have ``task`` learn from features of both splits, which are computed where they are not there yet.

    Every rank calls it. Afterwards ``stream`` and ``held_out`` give batches of tokens, and ``task`` takes them.

    Args:
        run: the folder that keeps them.
        views: random crops of a training image; 0: its centre.
    """
    check(recipe, task, views)
    kind: Kind = task.head.pool or "tokens"
    device = Plain(task).device
    found = []
    for split, crops in ((stream, views), (held_out, 0)):
        images, identity = described(
            split.shelf,
            recipe.data,
            encoder=f"{UNTRAINED} {pretrained.seed}" if fingerprint == UNTRAINED else fingerprint,
            shape=pretrained.encoder,
            kind=kind,
            normed=task.head.normed,
            seed=recipe.seed,
            views=crops,
        )
        folder = run / CACHE / identity.folder
        if not (folder / "manifest.json").is_file():
            say(f"features of {images.images:,} images of {identity.split!r}, {in_words(identity)}, once, in {folder}")
        state = task.training
        task.eval()
        extract(folder, identity, images, task.features, class_tokens=pretrained.encoder.class_tokens, device=device)
        task.train(state)
        features = Features.open(folder, identity)
        split.instead = batches_of(features, split.images, pretrained.encoder.class_tokens)
        found.append(features)
    task.recalled = True
    say(_differs(recipe, views))
    return found[0], found[1]


def check(recipe: Downstream, task: Classification, views: int) -> None:
    """Refuse what needs pixels."""
    if task.head.labels == "map":
        raise RecipeError(f"the head {recipe.head.name!r} learns maps, and features have none; leave --cached out")
    if recipe.data.erase or recipe.mixing.on:
        raise RecipeError("data.erase and mixing change pixels, and features have none; set them to 0")
    if views and task.head.fits:
        raise RecipeError(f"the head {recipe.head.name!r} looks at centre views only; leave --views out")
    if views and recipe.labels_per_class:
        raise RecipeError("--views is for all labels, as few images have an order of their own; leave one of them out")


def batches_of(features: Features, images: int, class_tokens: int) -> Callable[[Plan], Iterator[Batch]]:
    """What makes the batches of a plan: tokens of images in place of pixels.

    A vector stands at the place of every token, so that a head that pools them, whichever, finds it again.

    Args:
        images: in an epoch; epoch e sees view e, and again the first one after the last.
    """
    identity = features.manifest.identity

    def read(plan: Plan) -> Iterator[Batch]:
        for rows, positions in plan:
            real = np.maximum(rows, 0)
            tokens = features.take(real, positions // images % identity.views if identity.views else None)
            if identity.kind != "tokens":
                tokens = tokens[:, None].expand(-1, class_tokens + 1, -1)
            numbers = torch.from_numpy(rows)
            labels = features.labels[torch.from_numpy(real)]
            labels = torch.where(numbers >= 0, labels, -1) if labels.dim() == 1 else labels
            yield Batch(tokens, labels, numbers, torch.from_numpy(positions))

    return read


def _differs(recipe: Downstream, views: int) -> str:
    """What is not as in a probe that sees images, in a sentence."""
    data = recipe.data
    plain = data.crop == "none" or (
        data.crop == "centre" and not data.flip and not any(data.jitter) and not data.randaugment
    )
    if plain:
        return "cached features: the same views as without --cached"
    if not views:
        return (
            f"cached features: every image is seen in its centre view; without --cached it is cropped anew every epoch "
            f"(data.crop {data.crop!r}); with --views K it has K random crops"
        )
    if views >= recipe.schedule.epochs:
        return "cached features: the same random views as without --cached"
    return (
        f"cached features: {views} random crops of every image, those of the first {views} epochs, come again and "
        f"again; without --cached all {recipe.schedule.epochs:g} epochs have new ones"
    )
