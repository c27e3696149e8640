"""Checks of heads."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from mae_pipe.contracts import Head, View
from mae_pipe.errors import PluginError
from mae_pipe.testing import surroundings
from mae_pipe.testing.subject import Skip, Subject, finite, hold, near, no_global_randomness, require, same_shape

IMAGES = 6
IGNORE = 255  # in a map: of no class
VIEWS = (  # 3 x 4 and 4 x 4 patches
    View(24, 32, (8, 8), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)),
    View(32, 32, (8, 8), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)),
)
GIVEN: tuple[dict[str, Any], ...] = (  # what a run would give
    {"width": 16, "classes": 5, "class_tokens": 1, "view": VIEWS[0]},
    {"width": 24, "classes": 3, "class_tokens": 2, "view": VIEWS[1]},
)


def _givens(subject: Subject) -> tuple[dict[str, Any], ...]:
    return (subject.given,) if subject.given else GIVEN


def tokens_of(head: Head, given: dict[str, Any], seed: int = 2) -> Tensor:
    """[B, T + N, D], as an encoder gives them; [B, K, T + N, D] to a head that asks for K blocks."""
    count = given["class_tokens"] + given["view"].grid.size
    blocks = (len(head.blocks),) if head.blocks else ()
    shape = IMAGES, *blocks, count, given["width"]
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels_of(head: Head, given: dict[str, Any]) -> Tensor:
    """As a batch brings them to this head: classes, several a picture, or a map."""
    classes: int = given["classes"]
    view: View = given["view"]
    numbers = torch.arange(IMAGES) % classes
    if head.labels == "multi":
        return (
            torch.nn.functional.one_hot(numbers, classes)
            .roll(1, 0)
            .float()
            .maximum(torch.nn.functional.one_hot(numbers.flip(0), classes).float())
        )
    if head.labels == "map":
        rows = torch.arange(view.height)[:, None] // 8 + torch.arange(view.width) // 8
        maps = (rows + numbers[:, None, None]) % classes
        maps[:, :2] = IGNORE
        return maps
    require(head.labels == "class", f"{type(head).__name__}.labels is {head.labels!r}; expected class, multi or map")
    return numbers


def made(subject: Subject, given: dict[str, Any]) -> Head:
    """A head, fitted if it wants to be."""
    head: Head = subject.make(**given)
    return fitted(head, given) if head.fits else head


@torch.no_grad()
def fitted(head: Head, given: dict[str, Any]) -> Head:
    """After it has seen the features of all training images."""
    head.fit(iter([(tokens_of(head, given, seed), labels_of(head, given)) for seed in (5, 6)]))
    return head


def is_trained(head: Head) -> bool:
    """Whether an engine would have it; else a run fits and measures it in float32, and keeps no checkpoint."""
    return any(parameter.requires_grad for parameter in head.parameters())


def shapes(subject: Subject) -> str:
    """Loss and metrics are [B] float32 and finite, in training and in evaluation, with one class token and two."""
    metrics: dict[str, Tensor] = {}
    for given in _givens(subject):
        head = made(subject, given)
        name, labels = type(head).__name__, labels_of(head, given)
        for training in (True, False):
            output = head.train(training)(tokens_of(head, given))
            require(len(output) == IMAGES, f"{name} gave {len(output)} outputs for {IMAGES} images")
            loss = head.loss(output, labels)
            same_shape(f"{name}.loss", loss, (IMAGES,))
            finite(f"{name}.loss", loss)
        metrics = head.metrics(output, labels)
        require(bool(metrics), f"{name}.metrics gave nothing; expected at least one [B] tensor by name")
        for key, value in metrics.items():
            said = f"{name}.metrics[{key!r}] gave shape {list(value.shape)}, expected [{IMAGES}] or [{IMAGES}, ...]"
            require(value.dim() > 0 and len(value) == IMAGES, said)
            require(value.dtype == torch.float32, f"{name}.metrics[{key!r}] is {value.dtype}, expected float32")
    return f"of the contract; metrics {', '.join(metrics)}"


def reports_its_main_metric(subject: Subject) -> str:
    """The summary of its metrics is numbers by name, and the main one is among them."""
    given = _givens(subject)[0]
    head = made(subject, given).eval()
    output, labels = head(tokens_of(head, given)), labels_of(head, given)
    metrics = {"loss": head.loss(output, labels), **head.metrics(output, labels)}
    found = head.summary({key: value.detach().float().mean(0) for key, value in metrics.items()})
    name = type(head).__name__
    plain = all(isinstance(key, str) and isinstance(value, float) for key, value in found.items())
    require(plain, f"{name}.summary gave {found!r}, expected floats by name")
    require(head.main in found, f"{name}.main is {head.main!r}, and its summary has {', '.join(found)}")
    return ", ".join(f"{key} (main)" if key == head.main else key for key in found)


def trains(subject: Subject) -> str:
    """Every trainable parameter gets a finite gradient, and thirty steps on one batch lower the loss."""
    given = _givens(subject)[0]
    head = made(subject, given)
    name, tokens, labels = type(head).__name__, tokens_of(head, given), labels_of(head, given)
    trainable = {n: p for n, p in head.named_parameters() if p.requires_grad}
    if not trainable:
        require(head.fits, f"{name} has no trainable parameters and does not say fits = True; it learns nothing")
        raise Skip("it has no trainable parameters")
    loss = head.train().loss(head(tokens), labels)
    gradients = torch.autograd.grad(loss.mean(), list(trainable.values()), allow_unused=True)
    idle = [n for n, gradient in zip(trainable, gradients, strict=True) if gradient is None]
    require(not idle, f"{name} has parameters {idle} that its loss does not train")
    wild = [n for n, g in zip(trainable, gradients, strict=True) if g is not None and not bool(g.isfinite().all())]
    require(not wild, f"{name} has gradients that are not finite for {wild}")
    head = copy.deepcopy(head)
    optimizer = torch.optim.Adam([p for p in head.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    with torch.random.fork_rng(devices=[]):
        for _ in range(30):
            optimizer.zero_grad()
            torch.manual_seed(0)  # the same dropout in every step
            loss = head.loss(head(tokens), labels).mean()
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(float(loss.detach()))
    lower = losses[-1] < losses[0]
    require(lower, f"{name} does not learn: its loss goes from {losses[0]:.3f} to {losses[-1]:.3f} in thirty steps")
    return f"loss from {losses[0]:.3f} to {losses[-1]:.3f} in thirty steps"


def takes_mixed_labels(subject: Subject) -> None:
    """Labels as shares [B, C] give the loss of the same labels as numbers [B]."""
    given = _givens(subject)[0]
    head = made(subject, given).eval()
    if head.labels != "class":
        raise Skip(f"its labels are {head.labels!r}")
    if not is_trained(head):
        raise Skip("it has no trainable parameters, and labels are mixed in training only")
    output, labels = head(tokens_of(head, given)), labels_of(head, given)
    loss, mixed = (
        head.loss(output, labels),
        head.loss(output, torch.nn.functional.one_hot(labels, given["classes"]).float()),
    )
    name = type(head).__name__
    same_shape(f"{name}.loss of [B, C] labels", mixed, (IMAGES,))
    require(
        torch.allclose(loss, mixed, rtol=1e-5, atol=1e-6),
        f"{name}.loss of labels as shares [B, C] is not that of the same labels as numbers [B]",
    )


def depends_on_its_image_alone(subject: Subject) -> None:
    """In evaluation an image's output and metrics do not depend on its batch."""
    for given in _givens(subject):
        head = made(subject, given).eval()
        name, tokens, labels = type(head).__name__, tokens_of(head, given), labels_of(head, given)
        with torch.no_grad():
            output = head(tokens)
            metrics = head.metrics(output, labels)
            # whole numbers, such as ranks, can agree by chance: so two at a time, and each alone
            for some in (slice(1, 3), *(slice(image, image + 1) for image in range(IMAGES))):
                part = head(tokens[some])
                require(near(output[some], part, share=1e-4), f"{name} gives an image another output in another batch")
                fewer = head.metrics(part, labels[some])
                for key, value in metrics.items():
                    alike = key in fewer and torch.allclose(value[some], fewer[key], rtol=1e-4, atol=1e-5)
                    said = (
                        f"{name}.metrics[{key!r}] of an image depends on its batch; means over ranks would be inexact"
                    )
                    require(alike, said)


@torch.no_grad()
def repeats_itself(subject: Subject) -> None:
    """In evaluation the same tokens give the same output again, also from a head built anew."""
    for given in _givens(subject):
        head = made(subject, given).eval()
        output = head(tokens_of(head, given))
        where = f"{type(head).__name__} gave another output for the same tokens"
        require(torch.equal(output, head(tokens_of(head, given))), where)
        again = made(subject, given).eval()(tokens_of(head, given))
        require(near(output, again), f"{where} when it was built again with the same seed")


def ignores_global_randomness(subject: Subject) -> None:
    """Nothing is drawn from NumPy's and Python's generators, nor in evaluation from PyTorch's."""
    given = _givens(subject)[0]
    with no_global_randomness("building it", torch_too=False):
        head = made(subject, given)
    name, tokens, labels = type(head).__name__, tokens_of(head, given), labels_of(head, given)
    for training in (True, False):
        head.train(training)
        # dropout may draw from PyTorch's in training: every step sets it anew
        with torch.random.fork_rng(devices=[]), no_global_randomness(name, torch_too=not training):
            output = head(tokens)
            head.loss(output, labels)
            head.metrics(output, labels)


@torch.no_grad()
def keeps_its_state(subject: Subject) -> str:
    """All that it has learned is in its state_dict: another one that reads it gives the same output."""
    given = _givens(subject)[0]
    head = made(subject, given)
    head.train()(tokens_of(head, given, 8))  # running statistics, if any
    other: Head = subject.rebuilt(**given)
    state = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    name = type(head).__name__
    if head.fits and not is_trained(head):
        raise Skip("it has no trainable parameters: it is fitted anew, and in no checkpoint")
    try:
        other.load_state_dict(state)
    except RuntimeError as error:
        raise PluginError(f"{name} does not read its own state_dict: {' '.join(str(error).split())}") from error
    alike = near(head.eval()(tokens_of(head, given)), other.eval()(tokens_of(head, given)))
    require(alike, f"{name} gives another output by way of a checkpoint; keep its state in persistent buffers")
    return f"{len(state)} tensors"


def follows_devices(subject: Subject) -> str:
    """Output, loss and metrics are on the tokens' device."""
    given = _givens(subject)[0]

    def work(head: Head, device: torch.device) -> dict[str, Tensor]:
        with torch.no_grad():
            output, labels = head.eval()(tokens_of(head, given).to(device)), labels_of(head, given).to(device)
            return {"output": output, "loss": head.loss(output, labels), **head.metrics(output, labels)}

    head = made(subject, given)
    return surroundings.on_devices(type(head).__name__, head, work)


def is_bf16_safe(subject: Subject) -> None:
    """In a bfloat16 engine and under autocast loss and metrics stay float32 and nearly the same."""
    given = _givens(subject)[0]
    head = made(subject, given).eval()
    name, tokens, labels = type(head).__name__, tokens_of(head, given), labels_of(head, given)
    loss = head.loss(head(tokens), labels)
    for where, engine in (("in a bfloat16 engine", True), ("under autocast", False)):
        other = copy.deepcopy(head).bfloat16() if engine and is_trained(head) else head
        with torch.autocast("cpu", torch.bfloat16, enabled=not engine):
            try:
                output = other(tokens.bfloat16() if engine else tokens)
                found, metrics = other.loss(output, labels), other.metrics(output, labels)
            except RuntimeError as error:
                raise PluginError(f"{name} fails {where}: {str(error).splitlines()[0]}") from error
        finite(f"{name}.loss {where}", found)
        require(
            near(found, loss, share=0.05), f"{name}.loss is another {where}: {found.mean():.4f}, not {loss.mean():.4f}"
        )
        for key, value in metrics.items():
            require(value.dtype == torch.float32, f"{name}.metrics[{key!r}] is {value.dtype} {where}, expected float32")


def compiles(subject: Subject) -> None:
    """torch.compile takes output and loss whole, without a graph break."""
    given = _givens(subject)[0]
    head = made(subject, given).eval()
    labels = labels_of(head, given)
    what = type(head).__name__
    surroundings.compiled(what, lambda tokens, truth: head.loss(head(tokens), truth), tokens_of(head, given), labels)


CONTRACT = (
    shapes,
    trains,
    takes_mixed_labels,
    depends_on_its_image_alone,
    repeats_itself,
    ignores_global_randomness,
    keeps_its_state,
    reports_its_main_metric,
)
SURROUNDINGS = (follows_devices, is_bf16_safe, compiles)


def check_head(head: Head, *, width: int, classes: int, class_tokens: int = 1, view: View = VIEWS[0]) -> None:
    """The contract of a head that is built; raises ``PluginError`` for the first check that fails.

    Args:
        width, classes, class_tokens, view: D, C and T, and the images, with which it was built.
    """
    given = {"width": width, "classes": classes, "class_tokens": class_tokens, "view": view}
    hold(CONTRACT, Subject.built(head, **given))
