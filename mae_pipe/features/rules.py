"""The optimizers' rules on many heads at once, each with a learning rate of its own.

They are those of ``engine/lars.py``, ``torch.optim.SGD`` and ``torch.optim.AdamW``, where a head is a tensor.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mae_pipe.tables import Optimizer

Step = Callable[[Tensor, Tensor, Tensor], None]  # gradients of weights and biases, [R] learning rates


def rule_of(choice: Optimizer, weights: Tensor, biases: Tensor, decays: Tensor) -> Step:
    """What steps [R, C, D] ``weights`` and [R, C] ``biases``, in place; ``decays`` [R] are of the weights alone."""
    pairs = [(weights, decays[:, None, None]), (biases, None)]
    if choice.name == "lars":
        take = _momentum(choice.momentum, [_Lars(choice.trust), None], pairs)
    elif choice.name == "sgd":
        take = _momentum(choice.momentum, [_decayed, None], pairs)
    else:
        take = _adamw(choice, pairs)

    def step(of_weights: Tensor, of_biases: Tensor, rates: Tensor) -> None:
        if choice.clip:
            norm = (_square(of_weights) + _square(of_biases)).sqrt()  # [R]
            share = (choice.clip / (norm + 1e-6)).clamp(max=1.0)
            of_weights, of_biases = of_weights * share[:, None, None], of_biases * share[:, None]
        take(of_weights, of_biases, rates)

    return step


Pairs = list[tuple[Tensor, Tensor | None]]
Change = Callable[[Tensor, Tensor, Tensor], Tensor]  # gradients, weights, decays -> gradients


def _decayed(gradients: Tensor, weights: Tensor, decays: Tensor) -> Tensor:
    return gradients + decays * weights


class _Lars:
    """A decayed gradient, scaled to ``trust`` norms of its head's weights."""

    def __init__(self, trust: float) -> None:
        self.trust = trust

    def __call__(self, gradients: Tensor, weights: Tensor, decays: Tensor) -> Tensor:
        gradients = _decayed(gradients, weights, decays)
        of_weights, of_gradients = _square(weights).sqrt(), _square(gradients).sqrt()
        scale = torch.where((of_weights > 0) & (of_gradients > 0), self.trust * of_weights / of_gradients, 1.0)
        return gradients * scale[:, None, None]


def _momentum(momentum: float, changes: list[Change | None], pairs: Pairs) -> Step:
    buffers = [torch.zeros_like(values) for values, _ in pairs]

    def take(of_weights: Tensor, of_biases: Tensor, rates: Tensor) -> None:
        for (values, decays), buffer, change, gradients in zip(
            pairs, buffers, changes, (of_weights, of_biases), strict=True
        ):
            if change is not None and decays is not None:
                buffer.mul_(momentum).add_(change(gradients, values, decays))
            else:
                buffer.mul_(momentum).add_(gradients)
            values.sub_(_along(rates, values) * buffer)

    return take


def _adamw(choice: Optimizer, pairs: Pairs) -> Step:
    (beta1, beta2), count = choice.betas, 0
    moments = [(torch.zeros_like(values), torch.zeros_like(values)) for values, _ in pairs]

    def take(of_weights: Tensor, of_biases: Tensor, rates: Tensor) -> None:
        nonlocal count
        count += 1
        for (values, decays), (first, second), gradients in zip(pairs, moments, (of_weights, of_biases), strict=True):
            lr = _along(rates, values)
            if decays is not None:
                values.mul_(1 - lr * decays)
            first.lerp_(gradients, 1 - beta1)
            second.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
            below = (second.sqrt() / (1 - beta2**count) ** 0.5).add_(choice.eps)
            values.sub_(lr / (1 - beta1**count) * first / below)

    return take


def _along(rates: Tensor, values: Tensor) -> Tensor:
    """[R] -> [R, 1, ...] beside ``values``."""
    return rates.reshape(-1, *[1] * (values.dim() - 1))


def _square(values: Tensor) -> Tensor:
    """[R, ...] -> [R] float32: the squared norm of each head's."""
    return values.flatten(1).double().square().sum(dim=1).float()
