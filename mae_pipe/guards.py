"""Whether a model can learn at all: checks before training that catch what runs to the end and is worth nothing.

Each looks for a defect that was shipped somewhere: position tables that are zero, a layer decay
that matches no layer, parameters outside the graph (docs/recipes.md names them).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mae_pipe.data.batch import Batch
from mae_pipe.errors import TrainingError
from mae_pipe.masking import Mask
from mae_pipe.method import Method
from mae_pipe.patches import patchify, unpatchify
from mae_pipe.positions import BIAS
from mae_pipe.tasks import MaskedAutoencoder

IMAGES = 8  # that a check looks at
SPREAD = 1e-4  # of a difference to a magnitude: less is rounding
PUBLISHED = {  # (width, side) -> sum and sum of absolutes of the official position tables
    (768, 14): (69594.4938, 84118.4157),
    (1024, 14): (92849.1979, 112137.8061),
    (1280, 16): (149578.4058, 183831.0166),
    (512, 14): (46340.3331, 56094.4886),
    (512, 16): (59700.6785, 73568.8193),
}


@dataclass(frozen=True)
class Finding:
    """What one check saw."""

    name: str
    holds: bool
    detail: str


def require(findings: Iterator[Finding]) -> None:
    """Raise for the first that does not hold."""
    for finding in findings:
        if not finding.holds:
            raise TrainingError(f"this would train to nothing: {finding.name}: {finding.detail}")


def of_method(task: Method, batch: Batch) -> Iterator[Finding]:
    """The checks of a method before its first step: all of a masked autoencoder's; of others that they are connected.

    Buffers, such as sums and running means, are left as they were.
    """
    if isinstance(task, MaskedAutoencoder):
        yield from of_pretraining(task, batch)
        return
    before = {name: buffer.clone() for name, buffer in task.named_buffers()}
    yield from of_connections(task, batch)
    for name, buffer in task.named_buffers():
        buffer.copy_(before[name])


def of_pretraining(task: MaskedAutoencoder, batch: Batch, *, trained: bool = False) -> Iterator[Finding]:
    """The checks of a masked autoencoder, on a few images; it is left as it was.

    Args:
        trained: the weights are not the first ones, so the loss is not compared with the expected first one.
    """
    state, device = task.training, next(task.parameters()).device
    task.eval()
    try:
        few = batch.each(lambda tensor: tensor[:IMAGES]).to(device)
        images = task.images(few)
        yield target_varies(task, images)
        yield from position_tables(task)
        yield positions_matter(task, images)
        yield predictions_differ(task, few)
        yield from losses(task, few, images, trained=trained)
    finally:
        task.zero_grad(set_to_none=True)
        task.train(state)


@torch.no_grad()
def target_varies(task: MaskedAutoencoder, images: Tensor) -> Finding:
    """A target that is the same everywhere teaches nothing."""
    truth = task.target.truth(images)
    name = "the target varies from patch to patch"
    if truth.dtype == torch.int64:
        kinds = int(torch.unique(truth).numel())
        return Finding(name, kinds > 1, f"{kinds} different tokens in {truth.numel()} patches")
    spread = float(truth.float().flatten(0, 1).std(0).mean()) if truth.shape[0] * truth.shape[1] > 1 else 1.0
    return Finding(name, math.isfinite(spread) and spread > 1e-6, f"mean deviation {spread:.3g}")


def position_tables(task: MaskedAutoencoder) -> Iterator[Finding]:
    """Fixed tables are compared with the published sums, or with the sums of the formula for another size."""
    for name, part in (("encoder", task.encoder), ("decoder", task.decoder)):
        table = part.pos_embed
        if table is None or (isinstance(table, nn.Parameter) and table.requires_grad):
            continue
        rows, cols, width = task.grid.rows, task.grid.cols, table.shape[-1]
        known = PUBLISHED.get((width, rows)) if rows == cols else None
        expected = known or (_sum(rows, cols, width, absolute=False), _sum(rows, cols, width, absolute=True))
        found = float(table.double().sum()), float(table.double().abs().sum())
        holds = all(math.isclose(f, e, rel_tol=1e-5, abs_tol=1e-3) for f, e in zip(found, expected, strict=True))
        source = "published" if known else "formula"
        yield Finding(
            f"the {name}'s position table is the sin-cos one",
            holds,
            f"sum {found[0]:.4f} and absolute sum {found[1]:.4f}, {source} {expected[0]:.4f} and {expected[1]:.4f}",
        )


def _sum(rows: int, cols: int, width: int, *, absolute: bool) -> float:
    """Of all numbers of a sin-cos table: each half depends on one axis only, so it is a sum of two lines."""
    quarter, size = width // 4, abs if absolute else float

    def line(count: int) -> float:
        angles = [at * 10000 ** (-k / quarter) for at in range(count) for k in range(quarter)]
        return math.fsum(size(wave(angle)) for angle in angles for wave in (math.sin, math.cos))

    return rows * line(cols) + cols * line(rows)


@torch.no_grad()
def positions_matter(task: MaskedAutoencoder, images: Tensor) -> Finding:
    """Attention alone cannot tell where a patch is: shuffled patches would give shuffled tokens."""
    grid, name = task.grid, "the encoder sees where a patch is"
    if grid.size == 1:
        return Finding(name, True, "there is one patch only")
    biases = [part for name, part in task.encoder.named_parameters() if name.endswith(BIAS)]
    if biases and not any(bool(bias.any()) for bias in biases):
        return Finding(name, True, "it learns distances, which all begin at zero")
    order = torch.arange(grid.size, device=images.device).roll(1)
    patch = images.shape[2] // grid.rows, images.shape[3] // grid.cols
    shuffled = unpatchify(patchify(images, patch)[:, order], patch, grid.rows, grid.cols)
    first = task.encoder.num_prefix_tokens
    straight = task.encoder(images)[:, first:][:, order].float()
    spread = float((task.encoder(shuffled)[:, first:].float() - straight).norm() / straight.norm().clamp(min=1e-30))
    return Finding(name, spread > SPREAD, f"tokens change by {spread:.3g} of their size when patches are shuffled")


@torch.no_grad()
def predictions_differ(task: MaskedAutoencoder, batch: Batch) -> Finding:
    """Every hidden patch enters the decoder as the same mask token: only positions tell them apart."""
    images = task.images(batch)
    mask = Mask.from_scores(task.scores_of(images, batch), task.ratio)
    prediction = task.decoder(task.encoder(images, mask), mask).float()  # [B, M, K]
    name = "predictions at hidden patches differ by position"
    if prediction.shape[1] < 2:
        return Finding(name, True, "one patch is hidden only")
    spread = float(prediction.std(dim=1).mean() / prediction.abs().mean().clamp(min=1e-30))
    return Finding(name, spread > SPREAD, f"they differ by {spread:.3g} of their size")


def losses(task: MaskedAutoencoder, batch: Batch, images: Tensor, *, trained: bool) -> Iterator[Finding]:
    """The first loss, and whether every trainable parameter feels it."""
    with torch.enable_grad():
        loss = task(batch)
        found, low, high = float(loss.detach()), *expected_loss(task, images)
        if trained:
            yield Finding("the loss is finite", math.isfinite(found), f"{found:.4f}")
        else:
            detail = f"{found:.4f}, expected {low:.4f} to {high:.4f}"
            yield Finding("the first loss is what an untrained model has", low <= found <= high, detail)
        task.zero_grad(set_to_none=True)
        loss.backward()
    dead = [
        name
        for name, parameter in task.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not bool(parameter.grad.any()))
    ]
    detail = f"{len(dead)} do not, first {dead[0]}" if dead else "all do"
    yield Finding("every trainable parameter gets a gradient", not dead, detail)


@torch.no_grad()
def expected_loss(task: MaskedAutoencoder, images: Tensor) -> tuple[float, float]:
    """From half the loss of a prediction of zeros, to twice that and three times the first predictions' variance.

    A layer norm, then Xavier weights, make that variance 2 W / (W + K) (W: decoder width). For normalised
    pixels and ViT-B the loss of zeros is 0.9987, the variance 0.8, and the first loss near 1.8.
    """
    truth = task.target.truth(images)
    zeros = torch.zeros((*truth.shape[:2], task.target.width), device=images.device)
    level = float(task.target.loss(zeros, truth).mean())
    width = task.decoder.predict.in_features
    return 0.5 * level, 2 * level + 3 * 2 * width / (width + task.target.width)


def of_layer_decay(groups: list[dict[str, Any]], depth: int, decay: float, blocks: float | None = None) -> Finding:
    """A decay that matches no layer's name leaves every layer at the full rate, and nobody sees it.

    Args:
        blocks: the last that train, where not all of ``depth`` do.
    """
    scales = {round(math.log(group["lr_scale"]) / math.log(decay)) if decay < 1 else 0 for group in groups}
    layers = depth + 2 if blocks in (None, depth) else math.ceil(blocks or 0) + 1
    wanted = set(range(layers)) if decay < 1 else {0}
    missing = sorted(wanted - scales)
    return Finding(
        "layer decay reaches every layer",
        not missing,
        f"{len(scales)} different rates for {len(wanted)} layers"
        + (f", none of {decay:g} ** {missing[0]}" if missing else ""),
    )


def of_connections(task: nn.Module, batch: Batch) -> Iterator[Finding]:
    """Whether a downstream task's loss is finite and reaches every trainable parameter; it is left as it was."""
    state = task.training
    device = next(task.parameters()).device
    task.eval()
    try:
        few = batch.each(lambda tensor: tensor[:IMAGES]).to(device)
        with torch.enable_grad():
            loss = task(few)
            yield Finding("the loss is finite", bool(torch.isfinite(loss)), f"{float(loss.detach()):.4f}")
            if loss.requires_grad:
                loss.backward()
        dead = [name for name, p in task.named_parameters() if p.requires_grad and p.grad is None]
        detail = f"{len(dead)} are not, first {dead[0]}" if dead else "all are"
        yield Finding("every trainable parameter is part of the loss", not dead, detail)
    finally:
        task.zero_grad(set_to_none=True)
        task.train(state)
