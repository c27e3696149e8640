"""LARS: steps of momentum whose size follows each tensor's own norm (You et al. 2017)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mae_pipe.optim import Groups


def each_alone(groups: Groups) -> Groups:
    """The same groups with one tensor in each, and what ZeRO would forget of it: its size, and whether it is a matrix.

    ZeRO lays a group's tensors end to end, pads them and cuts them over the ranks. Of a group of one, every rank
    can tell which numbers are the tensor's, and the sums over the ranks' parts are that tensor's alone.
    """
    found = []
    for group in groups:
        for parameter in group["params"]:
            shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
            found.append({**group, "params": [parameter], "numel": shape.numel(), "matrix": len(shape) > 1})
    return found


class Lars(torch.optim.Optimizer):
    """The rule of the official linear probe (``util/lars.py``), on whole tensors or on ZeRO's parts of them.

    A gradient with its weight decay is scaled to ``trust`` times the norm of its tensor, then goes into the momentum.
    Tensors of one dimension, such as biases and norms, are neither decayed nor scaled. All ranks step together.

    Args:
        groups: from ``each_alone``.
    """

    def __init__(self, groups: Groups, *, lr: float, momentum: float, trust: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step with the gradients that there are."""
        for group in self.param_groups:
            for weights in group["params"]:  # none or one
                gradient = weights.grad
                if group["matrix"]:
                    gradient = gradient.add(weights, alpha=group["weight_decay"])
                    gradient.mul_(_scale(weights, gradient, group))
                state = self.state[weights]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weights)
                state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
                weights.add_(state["momentum_buffer"], alpha=-group["lr"])


def _scale(weights: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
    """trust x |weights| / |gradient| of the whole tensor; 1 where one of them is zero."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    own = min(max(group["numel"] - rank * weights.numel(), 0), weights.numel())  # the rest is padding, of any numbers
    norms = [torch.linalg.vector_norm(part.flatten()[:own], dtype=torch.float64) for part in (weights, gradient)]
    squares = torch.stack(norms).square()
    if world > 1:  # offloaded parts lie on the CPU, where NCCL sums nothing
        squares = squares.to("cuda" if torch.cuda.is_available() else "cpu")
        dist.all_reduce(squares)
    of_weights, of_gradient = squares.sqrt().to(weights.device).unbind()
    scale = group["trust"] * of_weights / of_gradient
    return torch.where((of_weights > 0) & (of_gradient > 0), scale, 1.0).to(weights.dtype)
