"""Multinomial logistic regression by L-BFGS, in the precision of the features; the objective is scikit-learn's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

ITERATIONS = 1000  # at most, as CLIP's
TOLERANCE = 1e-4  # of the largest number of the gradient, as scikit-learn's
FIRST = tuple(10.0**power for power in range(-6, 7, 2))  # values of C, as CLIP's
FINEST = 1 / 8  # decades between two values at the end


@dataclass(frozen=True)
class Fit:
    """A regression.

    Attributes:
        weights, biases: [C, D] and [C].
        converged: whether the gradient came below the tolerance.
    """

    weights: Tensor
    biases: Tensor
    converged: bool

    def scores(self, features: Tensor) -> Tensor:
        """[n, D] -> [n, C]."""
        return features @ self.weights.to(features.dtype).T + self.biases.to(features.dtype)


def fit(
    features: Tensor,
    labels: Tensor,
    classes: int,
    c: float,
    *,
    begin: Fit | None = None,
    iterations: int = ITERATIONS,
    tolerance: float = TOLERANCE,
) -> Fit:
    """The least sum of cross-entropies, times ``c``, plus half of the squared norm of the weights, but not the biases.

    Args:
        features, labels: [n, D] and [n] int64.
        c: the inverse of the strength of L2.
        begin: where to begin; default: zeros.
    """
    width = features.shape[1]
    start = torch.zeros(classes, width + 1, dtype=features.dtype, device=features.device)
    if begin is not None:
        start[:, :width], start[:, width] = begin.weights, begin.biases
    values = start.requires_grad_()
    strength = 1 / (c * len(labels))
    optimizer = torch.optim.LBFGS(
        [values],
        max_iter=iterations,
        max_eval=2 * iterations,
        tolerance_grad=tolerance,
        tolerance_change=1e-16,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        weights, biases = values[:, :width], values[:, width]
        loss = F.cross_entropy(torch.addmm(biases, features, weights.T), labels)
        loss = loss + 0.5 * strength * weights.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    closure()
    done = values.grad is not None and float(values.grad.abs().max()) <= tolerance
    found = values.detach()
    return Fit(found[:, :width].clone(), found[:, width].clone(), done)


def chosen(
    features: Tensor, labels: Tensor, held_out: Tensor, held_labels: Tensor, classes: int
) -> list[tuple[float, Fit, dict[str, float]]]:
    """Fits with values of C about the one that is best on the held-out images, rising, each with what it reached there.

    The search is CLIP's (Radford et al. 2021, A.3): seven values from 1e-6 to 1e6, then always the two beside the best
    at half the distance, down to an eighth of a decade.
    """
    found: dict[float, tuple[Fit, dict[str, float]]] = {}

    def try_(power: float) -> None:
        if power not in found:
            near = min(found, key=lambda other: abs(other - power), default=None)
            made = fit(features, labels, classes, 10.0**power, begin=found[near][0] if near is not None else None)
            found[power] = made, measured(made.scores(held_out), held_labels)

    for c in FIRST:
        try_(round(torch.tensor(c, dtype=torch.float64).log10().item(), 6))
    distance = 1.0
    while distance >= FINEST:
        peak = best(found)
        try_(peak - distance)
        try_(peak + distance)
        distance /= 2
    return [(10.0**power, *found[power]) for power in sorted(found)]


def best(found: dict[float, tuple[Fit, dict[str, float]]]) -> float:
    """The key with the highest top-1; of equals that with the least loss."""
    return max(found, key=lambda power: (found[power][1]["top1"], -found[power][1]["loss"]))


def measured(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """ "loss", "top1" and "top5" of [n, C] scores."""
    first = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
    return {
        "loss": float(F.cross_entropy(scores, labels)),
        "top1": float(first[:, 0].double().mean()),
        "top5": float(first.any(dim=1).double().mean()),
    }
