"""Checks of methods of pretraining."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mae_pipe.autoencoder import build_encoder
from mae_pipe.errors import PluginError
from mae_pipe.method import Method
from mae_pipe.testing import surroundings
from mae_pipe.testing.subject import Skip, Subject, finite, hold, near, no_global_randomness, require, same_shape
from mae_pipe.testing.training import IMAGES, SEED, STEPS, batch_of, loss_of, made, steps_of, usable_recipe


def loses_a_number(subject: Subject) -> str:
    """The loss is a finite float32 scalar, in training and in evaluation; its signs are numbers by name."""
    method = made(subject)
    name = type(method).__name__
    for training in (True, False):
        loss = loss_of(method.train(training), batch_of(method))
        same_shape(f"{name}.loss", loss, ())
        finite(f"{name}.loss", loss)
    signs = method.signs()
    plain = all(isinstance(key, str) and isinstance(value, float) for key, value in signs.items())
    require(plain, f"{name}.signs gave {signs!r}, expected floats by name")
    return f"signs {', '.join(signs)}" if signs else "without signs"


def trains(subject: Subject) -> str:
    """Every trainable parameter gets a finite gradient, and what is frozen gets none."""
    method = made(subject)
    name = type(method).__name__
    trained = {n: p for n, p in method.named_parameters() if p.requires_grad}
    require(bool(trained), f"{name} has no trainable parameters; it learns nothing")
    loss = loss_of(method.train(), batch_of(method))
    require(loss.requires_grad, f"{name}.loss depends on no parameter; it learns nothing")
    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    idle = [n for n, gradient in zip(trained, gradients, strict=True) if gradient is None]
    require(not idle, f"{name} has parameters {idle} that its loss does not train; freeze them, or leave them out")
    wild = [n for n, g in zip(trained, gradients, strict=True) if g is not None and not bool(g.isfinite().all())]
    require(not wild, f"{name} has gradients that are not finite for {wild}")
    return f"{len(trained)} tensors"


def leaves_images_alone(subject: Subject) -> None:
    """The batch is as before."""
    method = made(subject)
    given, same = batch_of(method), batch_of(method)
    loss_of(method.train(), given)
    alike = all(torch.equal(one, other) for one, other in zip(given.tensors, same.tensors, strict=True))
    require(alike, f"{type(method).__name__}.loss changed the batch; it must leave it as it is")


def repeats_itself(subject: Subject) -> None:
    """The same positions give the same loss again, whatever rows they are; and the same steps, when built anew."""
    method = made(subject)
    name, given = type(method).__name__, batch_of(method)
    first = loss_of(method.train(), given)
    elsewhere = replace(given, numbers=given.numbers + 100)
    same = torch.equal(first, loss_of(method, given)) and torch.equal(first, loss_of(method, elsewhere))
    require(same, f"{name}.loss gave another number for the same positions; what changes it belongs into after_step")
    one, other = steps_of(made(subject), 0, STEPS), steps_of(made(subject), 0, STEPS)
    require(one == other, f"{name} gave other losses for the same steps when it was built again: {one} and {other}")


def asks_for_labels(subject: Subject) -> str:
    """Unless it says ``labelled``, labels do not change the loss."""
    method = made(subject).eval()
    if method.labelled:
        return "it learns from labels"
    given = batch_of(method)
    without = replace(given, labels=torch.full_like(given.labels, -1))
    alike = torch.equal(loss_of(method, given), loss_of(method, without))
    require(alike, f"{type(method).__name__}.loss depends on labels; set labelled = True, so that images have them")
    return "it needs none"


@torch.no_grad()
def depends_on_its_image_alone(subject: Subject) -> str:
    """Unless it says ``batchwise``, the loss of a batch is the mean of its parts' in evaluation."""
    method = made(subject).eval()
    given = batch_of(method)
    if method.batchwise:
        return "it compares the images of a micro-batch"
    half = IMAGES // 2
    parts = [given.each(lambda tensor: tensor[:half]), given.each(lambda tensor: tensor[half:])]
    mean = torch.stack([loss_of(method, part) for part in parts]).mean()
    require(
        near(mean, loss_of(method, given), share=1e-4),
        f"{type(method).__name__}.loss of an image depends on the others of its batch, so it would change with the "
        "micro-batch; set batchwise = True, so that users are told",
    )
    return "so micro-batches of any size give the same"


def ignores_global_randomness(subject: Subject) -> None:
    """Nothing is drawn from NumPy's and Python's generators, nor in evaluation from PyTorch's."""
    with no_global_randomness("building it", torch_too=False):
        method = made(subject)
    name, given = type(method).__name__, batch_of(method)
    for training in (True, False):
        method.train(training)
        # dropout may draw from PyTorch's in training: every step sets it anew
        with torch.random.fork_rng(devices=[]), no_global_randomness(name, torch_too=not training):
            method(given)


@torch.no_grad()
def changes_nothing_in_evaluation(subject: Subject) -> None:
    """Loss, features and pictures in evaluation leave every weight and buffer as it was."""
    method = made(subject).eval()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    given = batch_of(method)
    loss_of(method, given)
    method.features(method.images_of(given)[0])
    if method.reconstructs:
        method.reconstruct(given)
    changed = [name for name, tensor in method.state_dict().items() if not torch.equal(tensor, before[name])]
    require(
        not changed,
        f"{type(method).__name__} changes {', '.join(changed)} in evaluation mode; change them only while training",
    )


def keeps_its_state(subject: Subject) -> str:
    """What it goes on from is in its state_dict: another one that reads it takes the same next steps."""
    method = made(subject)
    name = type(method).__name__
    if subject.entry is None:
        raise Skip("it was built by its own test, and cannot be built again")
    steps_of(method, 0, STEPS // 2)
    other = made(subject, seed=SEED + 1)
    state = {n: tensor.clone() for n, tensor in method.state_dict().items()}
    try:
        other.load_state_dict(state)
    except RuntimeError as error:
        raise PluginError(f"{name} does not read its own state_dict: {' '.join(str(error).split())}") from error
    one, two = steps_of(method, STEPS // 2, STEPS), steps_of(other, STEPS // 2, STEPS)
    require(
        near(torch.tensor(one), torch.tensor(two)),
        f"{name} goes on otherwise by way of a checkpoint ({one}, then {two}); keep its state in persistent buffers",
    )
    return f"{len(state)} tensors"


def publishes_an_encoder(subject: Subject) -> str:
    """What becomes encoder.safetensors has the names and shapes of an encoder."""
    method = made(subject)
    name = type(method).__name__
    try:
        published = method.get_submodule(method.published)
    except AttributeError as error:
        raise PluginError(f"{name}.published is {method.published!r}, which it has not; name a part of it") from error
    if subject.entry is None:
        wanted = {n: tuple(t.shape) for n, t in method.encoder.state_dict().items()}
    else:
        _, chosen = usable_recipe(subject)
        like = build_encoder(chosen.encoder, chosen.data.sides, channels=chosen.data.channels)
        wanted = {n: tuple(t.shape) for n, t in like.state_dict().items()}
    found = {n: tuple(t.shape) for n, t in published.state_dict().items()}
    odd = sorted({n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n)} - {"mask_token"})
    require(
        not odd,
        f"{name}.{method.published} is no encoder: {', '.join(odd[:5])} is missing, too much, or of another shape",
    )
    return method.published


@torch.no_grad()
def gives_features(subject: Subject) -> str:
    """Features are [B, D] float32 and finite, each of its image alone."""
    method = made(subject).eval()
    name, given = type(method).__name__, batch_of(method)
    (images, *_) = method.images_of(given)
    features = method.features(images)
    require(features.dim() == 2, f"{name}.features gave shape {list(features.shape)}, expected [B, D]")
    same_shape(f"{name}.features", features[:, 0], (IMAGES,))
    finite(f"{name}.features", features)
    part = method.features(images[1:3])
    require(near(part, features[1:3], share=1e-4), f"{name}.features of an image depend on the others of its batch")
    return f"{features.shape[1]} numbers"


def draws_what_it_predicts(subject: Subject) -> str:
    """If it has a ``reconstruction``: pictures of the images' shape, finite, and each of its image alone."""
    method = made(subject)
    if not method.reconstructs:
        return "it predicts no patches"
    name, given = type(method).__name__, batch_of(method)
    found = method.reconstruct(given)
    same_shape(f"{name}.reconstruction's picture", found.picture, tuple(found.images.shape))
    finite(f"{name}.reconstruction's picture", found.picture)
    require(
        found.mask.order.shape == (IMAGES, method.view.grid.size),
        f"{name}.reconstruction's mask is of {list(found.mask.order.shape)} patches, "
        f"expected [{IMAGES}, {method.view.grid.size}]",
    )
    part = method.reconstruct(given.each(lambda tensor: tensor[1:3])).picture
    alike = near(part, found.picture[1:3], share=1e-4)
    require(alike, f"{name}.reconstruction of an image depends on the others of its batch")
    return found.caption or "pixels"


def follows_devices(subject: Subject) -> str:
    """Loss and features are on the images' device."""
    method = made(subject)

    def work(method: Method, device: torch.device) -> dict[str, Tensor]:
        given = batch_of(method).to(device)
        with torch.no_grad():
            (images, *_) = method.eval().images_of(given)
            return {"loss": method(given), "features": method.features(images)}

    return surroundings.on_devices(type(method).__name__, method, work)


def is_bf16_safe(subject: Subject) -> None:
    """In a bfloat16 engine loss, features and gradients are finite, and the first two float32."""
    method = made(subject).bfloat16()
    name, given = type(method).__name__, batch_of(method)
    try:
        loss = loss_of(method.train(), given)
        finite(f"{name}.loss in a bfloat16 engine", loss)
        torch.autograd.backward(loss)
        method.after_step(1 / STEPS)
        with torch.no_grad():
            (images, *_) = method.eval().images_of(given)
            finite(f"{name}.features in a bfloat16 engine", method.features(images))
    except RuntimeError as error:
        raise PluginError(f"{name} fails in a bfloat16 engine: {str(error).splitlines()[0]}") from error
    wild = [n for n, p in method.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]
    require(not wild, f"{name} has gradients that are not finite in a bfloat16 engine for {wild}")


CONTRACT: tuple[Any, ...] = (
    loses_a_number,
    trains,
    leaves_images_alone,
    repeats_itself,
    asks_for_labels,
    depends_on_its_image_alone,
    ignores_global_randomness,
    changes_nothing_in_evaluation,
    keeps_its_state,
    publishes_an_encoder,
    gives_features,
    draws_what_it_predicts,
)
SURROUNDINGS: tuple[Any, ...] = (follows_devices, is_bf16_safe)


def check_method(method: Method) -> None:
    """The contract of a method that is built and bound; raises ``PluginError`` for the first check that fails."""
    hold(CONTRACT, Subject.built(method))
