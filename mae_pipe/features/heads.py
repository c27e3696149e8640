"""Many linear heads on the same features, trained together: one matrix product gives the scores of all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_pipe.contracts import Head
from mae_pipe.data.stream import Stream
from mae_pipe.errors import RecipeError
from mae_pipe.features.rules import rule_of
from mae_pipe.optim import Plan, learning_rate
from mae_pipe.recipe import Downstream

AT_ONCE = 4096  # images that are measured at once


@dataclass(frozen=True)
class Setting:
    """What one of the heads is trained with."""

    base_lr: float
    weight_decay: float


@dataclass(frozen=True)
class Split:
    """Features on the device.

    Attributes:
        features: [n, D], or [n, K, D] of K views.
        labels: [n] int64.
    """

    features: Tensor
    labels: Tensor

    def at(self, rows: Tensor, views: Tensor) -> Tensor:
        """[B, D]: of each row the view of that number, counted round."""
        if self.features.dim() == 2:
            return self.features[rows]
        return self.features[rows, views % self.features.shape[1]]


class Heads:
    """R copies of a linear head, each of which goes its own way.

    Args:
        head: batch norm without scale and shift, or nothing, then one linear layer and cross-entropy.

    Raises:
        RecipeError: the head is another.
    """

    def __init__(self, head: Head, count: int, device: torch.device) -> None:
        norm, linear = parts_of(head)
        self.norm = copy.deepcopy(norm).to(device) if norm is not None else None
        self.weights = linear.weight.detach().to(device)[None].repeat(count, 1, 1)  # [R, C, D]
        self.biases = linear.bias.detach().to(device)[None].repeat(count, 1)  # [R, C]

    def scores(self, features: Tensor) -> Tensor:
        """[B, D] features, normed already -> [B, R, C]."""
        count, classes, width = self.weights.shape
        flat = torch.addmm(self.biases.flatten(), features, self.weights.view(count * classes, width).T)
        return flat.view(-1, count, classes)

    def normed(self, features: Tensor, *, training: bool) -> Tensor:
        """[B, D]; in training by the batch's own statistics, of which the running ones are kept."""
        if self.norm is None:
            return features
        normed: Tensor = self.norm.train(training)(features)
        return normed

    def gradients(self, features: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
        """Of the mean cross-entropy of a batch: [R, C, D] and [R, C]; and the losses [R]."""
        features = self.normed(features, training=True)
        logs = self.scores(features).log_softmax(dim=2)  # [B, R, C]
        shares = F.one_hot(labels, logs.shape[2]).float() * (1 - smoothing) + smoothing / logs.shape[2]  # [B, C]
        losses = -torch.einsum("brc,bc->r", logs, shares) / len(labels)
        error = logs.exp_().sub_(shares[:, None]).div_(len(labels))  # [B, R, C]
        of_weights = (error.flatten(1).T @ features).view_as(self.weights)
        return of_weights, error.sum(dim=0), losses

    def put_into(self, head: Head, number: int) -> None:
        """Give ``head`` what one of the copies has learned."""
        norm, linear = parts_of(head)
        with torch.no_grad():
            linear.weight.copy_(self.weights[number])
            linear.bias.copy_(self.biases[number])
        if norm is not None and self.norm is not None:
            norm.load_state_dict(self.norm.state_dict())


def parts_of(head: Head) -> tuple[nn.modules.batchnorm._BatchNorm | None, nn.Linear]:
    """The norm and the layer of a linear head; anything else is refused."""
    leaves = [part for part in head.modules() if not list(part.children()) and not isinstance(part, nn.Identity)]
    *norms, last = leaves or [head]
    norm = norms[0] if norms else None
    plain = norm is None or (isinstance(norm, nn.modules.batchnorm._BatchNorm) and not norm.affine)
    if len(norms) > 1 or not plain or not isinstance(last, nn.Linear) or head.labels != "class":
        raise RecipeError(
            f"the head {type(head).__name__} is not one linear layer, with or without a batch norm that has no scale; "
            "for any head there is --cached"
        )
    return norm, last  # type: ignore[return-value]


def check(head: Head, features: Tensor, labels: Tensor) -> None:
    """Refuse a head that gives other scores or losses than its parts say, on some [B, D] features."""
    heads, was = Heads(head, 1, torch.device("cpu")), head.training
    with torch.no_grad():
        theirs = head.eval()(features[:, None].expand(-1, 2, -1))
        ours = heads.scores(heads.normed(features, training=False))[:, 0]
        same = torch.allclose(theirs, ours, atol=1e-4) and torch.allclose(
            head.loss(theirs, labels), F.cross_entropy(ours, labels, reduction="none"), atol=1e-3
        )
    head.train(was)
    if not same:
        raise RecipeError(
            f"the head {type(head).__name__} is more than its linear layer; for any head there is --cached"
        )


@torch.no_grad()
def train(
    head: Head,
    settings: list[Setting],
    split: Split,
    stream: Stream,
    recipe: Downstream,
    told: Callable[[int, float], None] = lambda step, loss: None,
) -> Heads:
    """Train a copy of ``head`` with each of the settings, all in one pass over the stream's positions.

    The images of each micro-batch, the schedule and the rule are those of ``mae-pipe probe`` on one process.

    Args:
        stream: says which image comes when; no pixels are read.
        told: hears (step, least loss of the settings) now and then.
    """
    device = split.features.device
    heads, plan = Heads(head, len(settings), device), Plan.of(recipe, stream.images, 1)
    decays = torch.tensor([setting.weight_decay for setting in settings], device=device)
    step_with = rule_of(recipe.optimizer, heads.weights, heads.biases, decays)
    peaks = [setting.base_lr * recipe.data.global_batch / 256 for setting in settings]
    batches, every = stream.plan(), max(1, plan.steps // 200)
    for step in range(plan.steps):
        of_weights, of_biases = torch.zeros_like(heads.weights), torch.zeros_like(heads.biases)
        losses = torch.zeros(len(settings), device=device)
        for _ in range(plan.accumulation):
            rows, positions = (torch.from_numpy(numbers) for numbers in next(batches))
            seen = split.at(rows.to(device), (positions // stream.images).to(device))
            found = heads.gradients(seen, split.labels[rows.to(device)], recipe.label_smoothing)
            for total, part in zip((of_weights, of_biases, losses), found, strict=True):
                total.add_(part, alpha=1 / plan.accumulation)
        schedule = {"epochs": plan.epochs, "warmup_epochs": plan.warmup_epochs}
        rates = [learning_rate(plan.epoch(step), peak, plan.min_lr, **schedule) for peak in peaks]
        step_with(of_weights, of_biases, torch.tensor(rates, device=device))
        if (step + 1) % every == 0:
            told(step + 1, float(losses.min()))
    return heads


@torch.no_grad()
def measure(heads: Heads, head: Head, split: Split, rows: Tensor | None = None) -> list[dict[str, float]]:
    """Of each of the heads "loss" and the metrics of ``head``: means over all images, or some rows."""
    rows = torch.arange(len(split.labels)) if rows is None else rows
    sums: list[dict[str, float]] = [{} for _ in range(len(heads.weights))]
    for some in torch.split(rows.to(split.labels.device), AT_ONCE):
        labels = split.labels[some]
        scores = heads.scores(heads.normed(split.at(some, torch.zeros_like(some)), training=False))
        for number, total in enumerate(sums):
            output = scores[:, number]
            found = {"loss": head.loss(output, labels), **head.metrics(output, labels)}
            for name, values in found.items():
                total[name] = total.get(name, 0.0) + float(values.sum(dtype=torch.float64)) / len(rows)
    return sums
