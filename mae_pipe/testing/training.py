"""A method as a run would build it, with batches and steps, for its checks."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor

from mae_pipe import recipe
from mae_pipe.building import asked_by, build
from mae_pipe.catalog import Catalog
from mae_pipe.data.batch import Batch
from mae_pipe.errors import MaePipeError, PluginError
from mae_pipe.method import Method
from mae_pipe.standins import batch_for
from mae_pipe.testing import tokens
from mae_pipe.testing.subject import Subject

IMAGES = 6
CLASSES = 5
STEPS = 4
SEED = 3


def recipes_of(subject: Subject) -> tuple[Catalog, list[recipe.Pretrain]]:
    """Small recipes, some of which a method may refuse: a target of pixels or of tokens, mask tokens or none."""
    entry, catalog = subject.entry, subject.catalog
    assert entry is not None
    assert catalog is not None
    catalog = Catalog((*catalog.files, Path(tokens.__file__)))
    shape = recipe.EncoderShape(width=32, depth=2, heads=2, patch=8)
    chosen = recipe.Pretrain(
        seed=SEED,
        data=recipe.Data(size=32, global_batch=IMAGES, micro_batch=IMAGES),
        encoder=shape,
        method=recipe.Chosen(name=entry.name, options=subject.options),
        schedule=recipe.Schedule(epochs=10.0, warmup_epochs=1.0),
    )
    asked = asked_by(chosen, catalog)
    if "decoder" in asked:
        chosen = chosen.model_copy(update={"decoder": recipe.DecoderShape(width=16, depth=1, heads=2)})
    found = [chosen]
    if "target" in asked:
        found.append(chosen.model_copy(update={"target": recipe.TargetChoice(name=tokens.NAME)}))
    hidden = shape.model_copy(update={"mask_tokens": True})
    return catalog, found + [one.model_copy(update={"encoder": hidden}) for one in found]


def usable_recipe(subject: Subject) -> tuple[Catalog, recipe.Pretrain]:
    """The first of ``recipes_of`` with which it can be built."""
    catalog, offered = recipes_of(subject)
    why = ""
    for chosen in offered:
        try:
            build(chosen, catalog, classes=CLASSES)
        except MaePipeError as error:
            why = why or str(error)
        else:
            return catalog, chosen
    raise PluginError(why)


def made(subject: Subject, seed: int = SEED) -> Method:
    """A method as a run builds it; with another ``seed`` only its first weights are others."""
    if subject.entry is None:
        built: Method = copy.deepcopy(subject.make())
        return built
    catalog, chosen = usable_recipe(subject)
    method = build(chosen.model_copy(update={"seed": seed}), catalog, classes=CLASSES)
    target = method.fitted()
    if target is not None and target.fit_images:
        (images, *_) = method.images_of(batch_for(method, 16, classes=CLASSES))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(1)
            target.fit(iter([images] * (target.fit_images // 16 + 1)))
    return method.bind(view=method.view, seed=SEED)


def batch_of(method: Method, number: int = 0) -> Batch:
    """Another batch for each ``number``."""
    return batch_for(method, IMAGES, classes=CLASSES, first=number * IMAGES, seed=number)


def loss_of(method: Method, batch: Batch) -> Tensor:
    """As in a step: dropout draws what belongs to the batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(batch.positions[0]))
        loss: Tensor = method(batch)
    return loss


def steps_of(method: Method, first: int, last: int) -> list[float]:
    """Losses of some steps of plain gradient descent, with what follows every step."""
    trained, losses = [p for p in method.parameters() if p.requires_grad], []
    optimizer = torch.optim.SGD(trained, lr=0.01)
    for step in range(first, last):
        optimizer.zero_grad()
        loss = loss_of(method.train(), batch_of(method, step))
        torch.autograd.backward(loss)
        optimizer.step()
        method.after_step((step + 1) / STEPS)
        losses.append(float(loss.detach()))
    return losses
