"""The contract of each kind of plugin as a check: call these from your plugin's own tests.

Each raises a ``PluginError`` that says what was expected and what came instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mae_pipe.contracts import Grid, Head, MaskSampler, Target, View
from mae_pipe.errors import PluginError
from mae_pipe.rng import Rng

GRIDS = (Grid(1, 1), Grid(4, 4), Grid(7, 7), Grid(14, 14), Grid(3, 5))


def check_mask_sampler(sampler: MaskSampler, *, pixels_a_patch: int = 4, images: int = 6) -> None:
    """Shapes, finite scores, and that an image's mask is a function of the image and its own ``rng`` alone."""
    for grid in GRIDS:
        batch = _images(images, grid.rows * pixels_a_patch, grid.cols * pixels_a_patch)
        untouched = batch.clone()
        before = torch.get_rng_state()
        scores = sampler.scores(batch, grid, Rng(7, torch.arange(images)))
        where = f"{type(sampler).__name__}.scores on a {grid.rows} x {grid.cols} grid"
        _require(isinstance(scores, Tensor), f"{where} gave {type(scores).__name__}, expected a tensor")
        _same_shape(where, scores, (images, grid.size))
        _require(scores.dtype == torch.float32, f"{where} gave {scores.dtype}, expected float32")
        _require(bool(torch.isfinite(scores).all()), f"{where} gave numbers that are not finite")
        _require(torch.equal(batch, untouched), f"{where} changed the images; it must leave them as they are")
        _require(
            torch.equal(before, torch.get_rng_state()),
            f"{where} drew from PyTorch's global generator; draw from rng, so that a resumed run repeats its masks",
        )
        again = sampler.scores(batch, grid, Rng(7, torch.arange(images)))
        _require(torch.equal(scores, again), f"{where} gave other scores for the same images and positions")
        part = sampler.scores(batch[2:4], grid, Rng(7, torch.arange(2, 4))) if images >= 4 else scores[2:4]
        _require(
            torch.equal(scores[2:4], part),
            f"{where} depends on the other images of the batch; the mask would change with the number of ranks",
        )


def check_target(target: Target, *, view: View, images: int = 3) -> None:
    """Shapes and dtypes, a loss per patch that mixes nothing, gradients, and a picture.

    Args:
        view: with which the target was built.
    """
    name = type(target).__name__
    count = view.grid.size
    batch = _images(images, view.height, view.width, view.channels)
    untouched = batch.clone()
    trainable = [n for n, p in target.named_parameters() if p.requires_grad]
    _require(not trainable, f"{name} has trainable parameters {trainable}; a target is frozen, use buffers")
    width = getattr(target, "width", None)
    _require(isinstance(width, int) and width > 0, f"{name}.width is {width!r}, expected how many numbers a patch has")
    assert isinstance(width, int)

    truth = target.truth(batch)
    if truth.dtype == torch.int64:
        _same_shape(f"{name}.truth", truth, (images, count))
    else:
        _require(truth.dtype == torch.float32, f"{name}.truth gave {truth.dtype}, expected float32 or int64")
        _require(truth.dim() == 3, f"{name}.truth gave shape {list(truth.shape)}, expected [B, N, K]")
        _same_shape(f"{name}.truth", truth[..., 0], (images, count))
        _require(bool(torch.isfinite(truth).all()), f"{name}.truth gave numbers that are not finite")
    _require(torch.equal(batch, untouched), f"{name}.truth changed the images; it must leave them as they are")

    generator = torch.Generator().manual_seed(1)
    prediction = torch.randn(images, count, width, generator=generator, requires_grad=True)
    loss = target.loss(prediction, truth)
    _same_shape(f"{name}.loss", loss, (images, count))
    _require(loss.dtype == torch.float32, f"{name}.loss gave {loss.dtype}, expected float32")
    _require(bool(torch.isfinite(loss).all()), f"{name}.loss gave numbers that are not finite")
    part = target.loss(prediction[1:, 2:], truth[1:, 2:])
    _require(
        torch.allclose(part, loss[1:, 2:], rtol=1e-5, atol=1e-6),
        f"{name}.loss of some patches is not the same as their part of all: only hidden patches are passed",
    )
    (gradient,) = torch.autograd.grad(loss.mean(), prediction, allow_unused=True)
    _require(
        gradient is not None and bool(torch.isfinite(gradient).all()) and bool(gradient.any()),
        f"{name}.loss gives no finite gradient for the prediction; nothing would be learned",
    )
    picture = target.picture(prediction.detach(), batch)
    _same_shape(f"{name}.picture", picture, tuple(batch.shape))
    _require(bool(torch.isfinite(picture).all()), f"{name}.picture gave numbers that are not finite")
    _require(isinstance(target.caption, str), f"{name}.caption is not a string")


def check_head(head: Head, *, width: int, classes: int, images: int = 6, patches: int = 9) -> None:
    """Shapes and dtypes, class numbers and mixed labels, metrics per image, gradients.

    Args:
        width, classes: D and C, with which the head was built.
    """
    name = type(head).__name__
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(images, 1 + patches, width, generator=generator)
    labels = torch.arange(images) % classes
    output = head.train()(tokens)
    loss = head.loss(output, labels)
    _same_shape(f"{name}.loss", loss, (images,))
    _require(loss.dtype == torch.float32, f"{name}.loss gave {loss.dtype}, expected float32")
    _require(bool(torch.isfinite(loss).all()), f"{name}.loss gave numbers that are not finite")
    trainable = {n: p for n, p in head.named_parameters() if p.requires_grad}
    _require(bool(trainable), f"{name} has no trainable parameters")
    gradients = torch.autograd.grad(loss.mean(), list(trainable.values()), allow_unused=True)
    idle = [n for n, gradient in zip(trainable, gradients, strict=True) if gradient is None]
    _require(not idle, f"{name} has parameters {idle} that its loss does not train")

    with torch.no_grad():
        output = head.eval()(tokens)
        _require(len(output) == images, f"{name} gave {len(output)} outputs for {images} images")
        loss = head.loss(output, labels)
        mixed = head.loss(output, torch.nn.functional.one_hot(labels, classes).float())
        _same_shape(f"{name}.loss of [B, C] labels", mixed, (images,))
        _require(
            torch.allclose(loss, mixed, rtol=1e-5, atol=1e-6),
            f"{name}.loss of labels as shares [B, C] is not that of the same labels as numbers [B]",
        )
        metrics = head.metrics(output, labels)
        _require(bool(metrics), f"{name}.metrics gave nothing; expected at least one [B] tensor by name")
        part = head.metrics(head(tokens[1:3]), labels[1:3])
        for key, value in metrics.items():
            _same_shape(f"{name}.metrics[{key!r}]", value, (images,))
            _require(value.dtype == torch.float32, f"{name}.metrics[{key!r}] is {value.dtype}, expected float32")
            _require(
                torch.allclose(value[1:3], part[key]),
                f"{name}.metrics[{key!r}] of an image depends on its batch; means over ranks would not be exact",
            )


def _images(count: int, height: int, width: int, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(0))


def _same_shape(what: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    _require(tuple(tensor.shape) == shape, f"{what} gave shape {list(tensor.shape)}, expected {list(shape)}")


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise PluginError(sentence)
