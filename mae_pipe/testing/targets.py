"""Checks of reconstruction targets."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from mae_pipe.contracts import Target, View
from mae_pipe.errors import PluginError
from mae_pipe.masking import gather
from mae_pipe.testing import surroundings
from mae_pipe.testing.subject import Subject, finite, hold, images, near, no_global_randomness, require, same_shape

IMAGES = 3
FITTED = 64  # images for ``fit``


def _view(height: int, width: int, patch: tuple[int, int], channels: int) -> View:
    return View(height, width, patch, (0.5, 0.4, 0.3)[:channels], (0.2, 0.25, 0.3)[:channels])


VIEWS = (  # a target may refuse some, not all
    _view(64, 64, (16, 16), 3),
    _view(32, 64, (8, 16), 3),
    _view(32, 32, (16, 16), 1),
    _view(224, 224, (16, 16), 3),
)


def usable_views(subject: Subject) -> list[View]:
    """Those of ``VIEWS`` with which it can be built; the large one only where no other is."""
    if subject.given:
        return [subject.given["view"]]
    found: list[View] = []
    why = ""
    for view in VIEWS:
        if found and view is VIEWS[-1]:
            break
        try:
            subject.make(view=view)
            found.append(view)
        except PluginError as error:
            why = str(error)
    require(bool(found), why)
    return found


def fitted(subject: Subject, view: View) -> Target:
    """A target that has learned what it wants to learn before training."""
    target: Target = subject.make(view=view)
    if target.fit_images:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(1)
            target.fit(batches_of(view))
    return target


def batches_of(view: View) -> Iterator[Tensor]:
    """What ``fit`` is given."""
    for number in range(FITTED // 16):
        yield images(16, view.channels, view.height, view.width, seed=1 + number)


def _images(view: View) -> Tensor:
    return images(IMAGES, view.channels, view.height, view.width)


def _prediction(target: Target, view: View, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return scale * torch.randn(IMAGES, view.grid.size, target.width, generator=generator)


@torch.no_grad()
def _truth(target: Target, pixels: Tensor) -> Tensor:
    return target.truth(pixels)


def is_frozen(subject: Subject) -> None:
    """It has no trainable parameters, and training mode changes nothing."""
    view = usable_views(subject)[0]
    target = fitted(subject, view)
    name = type(target).__name__
    trainable = [n for n, p in target.named_parameters() if p.requires_grad]
    require(not trainable, f"{name} has trainable parameters {trainable}; a target is frozen, use buffers")
    resting, training = _truth(target.eval(), _images(view)), _truth(target.train(), _images(view))
    require(
        torch.equal(resting, training),
        f"{name}.truth is another in training mode; keep what is inside in evaluation mode, whatever train() is told",
    )


def shapes(subject: Subject) -> str:
    """Truth, loss and picture have the shapes and number types of the contract."""
    views = usable_views(subject)
    for view in views:
        target = fitted(subject, view)
        name, count, pixels = type(target).__name__, view.grid.size, _images(view)
        width = getattr(target, "width", None)
        said = f"{name}.width is {width!r}, expected how many numbers a patch has"
        require(isinstance(width, int) and width > 0, said)
        truth = _truth(target, pixels)
        if truth.dtype == torch.int64:
            same_shape(f"{name}.truth", truth, (IMAGES, count))
            inside = bool(((truth >= 0) & (truth < target.width)).all())
            require(inside, f"{name}.truth gave tokens outside of 0 to {target.width - 1}, its width less one")
        else:
            require(truth.dtype == torch.float32, f"{name}.truth gave {truth.dtype}, expected float32 or int64")
            require(truth.dim() == 3, f"{name}.truth gave shape {list(truth.shape)}, expected [B, N, K]")
            same_shape(f"{name}.truth", truth[..., 0], (IMAGES, count))
            finite(f"{name}.truth", truth)
        some = torch.arange(count - 1, -1, -2).expand(IMAGES, -1)
        require(
            near(target.truth_at(pixels, some), gather(truth, some)),
            f"{name}.truth_at gave other numbers for some patches than {name}.truth for all",
        )
        prediction = _prediction(target, view)
        loss = target.loss(prediction, truth)
        same_shape(f"{name}.loss", loss, (IMAGES, count))
        finite(f"{name}.loss", loss)
        picture = target.picture(prediction, pixels)
        same_shape(f"{name}.picture", picture, tuple(pixels.shape))
        require(bool(torch.isfinite(picture).all()), f"{name}.picture gave numbers that are not finite")
        require(isinstance(target.caption, str), f"{name}.caption is not a string")
    sizes = ", ".join(f"{v.height} x {v.width} x {v.channels} in {v.patch[0]} x {v.patch[1]}" for v in views)
    return f"of the contract, with images of {sizes}"


def leaves_images_alone(subject: Subject) -> None:
    """The images are as before."""
    view = usable_views(subject)[0]
    target, pixels = fitted(subject, view), _images(view)
    name = type(target).__name__
    _truth(target, pixels)
    require(torch.equal(pixels, _images(view)), f"{name}.truth changed the images; it must leave them as they are")
    target.picture(_prediction(target, view), pixels)
    require(torch.equal(pixels, _images(view)), f"{name}.picture changed the images; it must leave them as they are")


def ignores_global_randomness(subject: Subject) -> None:
    """Nothing is drawn from the generators of PyTorch, NumPy and Python."""
    view = usable_views(subject)[0]
    with no_global_randomness("building it", torch_too=False):
        target = fitted(subject, view)
    name, pixels, prediction = type(target).__name__, _images(view), _prediction(target, view)
    with no_global_randomness(f"{name}.truth"):
        truth = _truth(target, pixels)
    with no_global_randomness(f"{name}.loss"):
        target.loss(prediction, truth)
    with no_global_randomness(f"{name}.picture"):
        target.picture(prediction, pixels)


def repeats_itself(subject: Subject) -> None:
    """The same images give the same truth again, also from a target built and fitted anew."""
    view = usable_views(subject)[0]
    target, pixels = fitted(subject, view), _images(view)
    name, truth = type(target).__name__, _truth(target, pixels)
    require(torch.equal(truth, _truth(target, pixels)), f"{name}.truth gave other numbers for the same images")
    again = _truth(fitted(subject, view), pixels)
    require(near(truth, again), f"{name}.truth gave other numbers for the same images when it was built again")


def depends_on_its_image_alone(subject: Subject) -> None:
    """An image's truth does not depend on the other images of the batch."""
    view = usable_views(subject)[0]
    target, pixels = fitted(subject, view), _images(view)
    part = _truth(target, pixels[1:2])
    require(
        near(part, _truth(target, pixels)[1:2], share=1e-4, wrong=0.01),
        f"{type(target).__name__}.truth of an image depends on the others of its batch; "
        "the loss would change with the number of ranks",
    )


def judges_each_patch_by_itself(subject: Subject) -> None:
    """The loss of some patches is their part of the loss of all, since only hidden ones are passed."""
    view = usable_views(subject)[0]
    target = fitted(subject, view)
    truth, prediction = _truth(target, _images(view)), _prediction(target, view)
    loss, part = target.loss(prediction, truth), target.loss(prediction[1:, 2:], truth[1:, 2:])
    require(
        part.shape == loss[1:, 2:].shape and torch.allclose(part, loss[1:, 2:], rtol=1e-5, atol=1e-6),
        f"{type(target).__name__}.loss of some patches is not the same as their part of all: "
        "only hidden patches are passed",
    )


def has_finite_gradients(subject: Subject) -> str:
    """The loss has a finite gradient for random, zero, large and perfect predictions."""
    view = usable_views(subject)[0]
    target = fitted(subject, view)
    name, truth = type(target).__name__, _truth(target, _images(view))
    tried = {
        "random": _prediction(target, view),
        "zero": torch.zeros(IMAGES, view.grid.size, target.width),
        "large": _prediction(target, view, 1e3),
    }
    if truth.is_floating_point():
        tried["perfect"] = truth.clone()
    for kind, prediction in tried.items():
        loss = target.loss(prediction.requires_grad_(), truth)
        require(bool(torch.isfinite(loss).all()), f"{name}.loss of {kind} predictions is not finite")
        gradient = torch.autograd.grad(loss.mean(), prediction, allow_unused=True)[0] if loss.requires_grad else None
        require(
            gradient is not None and bool(torch.isfinite(gradient).all()),
            f"{name}.loss gives no finite gradient for {kind} predictions; nothing would be learned",
        )
        if kind == "random":
            some = gradient is not None and bool(gradient.any())
            require(some, f"{name}.loss gives no finite gradient but zero for the prediction; nothing would be learned")
    return f"for {', '.join(tried)} predictions"


def keeps_its_state(subject: Subject) -> str:
    """What it has learned is in its state_dict: another one that reads it gives the same truth."""
    view = usable_views(subject)[0]
    target, pixels = fitted(subject, view), _images(view)
    name, state = type(target).__name__, target.state_dict()
    other = subject.rebuilt(view=view)
    unlike = [n for n, t in other.state_dict().items() if n not in state or state[n].shape != t.shape]
    unlike += [n for n in state if n not in other.state_dict()]
    require(
        not unlike,
        f"{name} has other buffers or shapes before fit than after ({', '.join(unlike)}); "
        "make them whole in __init__, so that ranks and checkpoints can hand them over",
    )
    other.load_state_dict(state)
    alike = near(_truth(target, pixels), _truth(other, pixels))
    require(alike, f"{name}.truth changes by way of a checkpoint; keep what it learns in persistent buffers")
    size = sum(t.numel() * t.element_size() for t in state.values())
    return f"{len(state)} tensors, {size / 1e6:.1f} MB" if state else "it has none"


def says_where_it_comes_from(subject: Subject) -> None:
    """Its provenance is names and hashes, as a run records them."""
    target = subject.make(view=usable_views(subject)[0])
    said = target.provenance()
    plain = isinstance(said, dict) and all(isinstance(k, str) and isinstance(v, str) for k, v in said.items())
    require(plain, f"{type(target).__name__}.provenance gave {said!r}, expected strings by name")


def follows_devices(subject: Subject) -> str:
    """Truth, loss and picture are on the images' device."""
    view = usable_views(subject)[0]
    target = fitted(subject, view)

    def work(target: Target, device: torch.device) -> dict[str, Tensor]:
        prediction, pixels = _prediction(target, view).to(device), _images(view).to(device)
        truth = _truth(target, pixels)
        loss, picture = target.loss(prediction, truth), target.picture(prediction, pixels)
        return {"truth": truth, "loss": loss, "picture": picture}

    return surroundings.on_devices(type(target).__name__, target, work)


def is_bf16_safe(subject: Subject) -> None:
    """In a bfloat16 engine the truth is the same, and the loss but for rounding; autocast does no harm."""
    view = usable_views(subject)[0]
    target, pixels = fitted(subject, view), _images(view)
    name, truth, prediction = type(target).__name__, _truth(target, pixels), _prediction(target, view)
    loss = target.loss(prediction, truth)
    for where, engine in (("in a bfloat16 engine", True), ("under autocast", False)):
        other = copy.deepcopy(target).bfloat16() if engine else target
        with torch.autocast("cpu", torch.bfloat16, enabled=not engine):
            try:
                found, rounded = _truth(other, pixels), other.loss(prediction.bfloat16(), truth)
            except RuntimeError as error:
                raise PluginError(f"{name} fails {where}: {str(error).splitlines()[0]}") from error
        require(found.dtype == truth.dtype, f"{name}.truth is {found.dtype} {where}, expected {truth.dtype}")
        require(
            near(found, truth, share=1e-4 if engine else 0.05, wrong=0.0 if engine else 0.05),
            f"{name}.truth is another {where}; keep its buffers float32 and compute in float32",
        )
        finite(f"{name}.loss {where}", rounded)
        require(near(rounded, loss, share=0.02), f"{name}.loss is another {where}; compute it in float32")


def compiles(subject: Subject) -> None:
    """torch.compile takes truth and loss whole, without a graph break."""
    view = usable_views(subject)[0]
    target, pixels = fitted(subject, view), _images(view)
    name, truth, prediction = type(target).__name__, _truth(target, pixels), _prediction(target, view)
    surroundings.compiled(f"{name}.truth", target.truth, pixels)
    surroundings.compiled(f"{name}.loss", target.loss, prediction, truth)


CONTRACT = (
    is_frozen,
    shapes,
    leaves_images_alone,
    ignores_global_randomness,
    repeats_itself,
    depends_on_its_image_alone,
    judges_each_patch_by_itself,
    has_finite_gradients,
    keeps_its_state,
    says_where_it_comes_from,
)
SURROUNDINGS = (follows_devices, is_bf16_safe, compiles)


def check_target(target: Target, *, view: View) -> None:
    """The contract of a target that is built; raises ``PluginError`` for the first check that fails.

    Args:
        view: with which it was built.
    """
    hold(CONTRACT, Subject.built(target, view=view))
