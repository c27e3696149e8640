"""Steps of plain torch on the tiny model of ``tests/workers/stages.py``, for engines to be compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mae_pipe.optim import Plan
from mae_pipe.recipe import Optimizer
from tests.workers import stages

Make = Callable[[list[dict[str, Any]], Optimizer], torch.optim.Optimizer]


@dataclass(frozen=True)
class Steps:
    """Losses before each step, and the float32 weights before the first and after the last."""

    losses: list[float]
    start: dict[str, Tensor]
    end: dict[str, Tensor]

    def off(self, weights: dict[str, Tensor]) -> float:
        """How far other weights are from the end: the median of their distances as a share of the median way there.

        In half precision losses cannot say it. A float32 weight that is another in its last bit may round to the next
        number, which moves some losses and gradients a little, by chance; the median of all weights stays.
        """
        assert set(weights) == set(self.end)
        moved = [name for name, tensor in self.end.items() if not torch.equal(tensor, self.start[name])]
        theirs, ours, before = (
            torch.cat([of[name].flatten() for name in moved]) for of in (weights, self.end, self.start)
        )
        return float((theirs - ours).abs().median() / (ours - before).abs().median())


def adamw(groups: list[dict[str, Any]], numbers: Optimizer) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, betas=numbers.betas, eps=numbers.eps)


def steps(
    precision: torch.dtype = torch.float32,
    name: str = "adamw",
    optimizer_of: Make = adamw,
    *,
    scale: float = 1.0,
    weights_in: torch.dtype = torch.float32,
    sums_in: torch.dtype = torch.float32,
) -> Steps:
    """On float32 weights and with float32 sums of micro-batches' gradients, unless told to do it worse.

    Args:
        scale: of losses before their gradients are taken, and of the sums the inverse.
        weights_in: what the weights are rounded to after every step.
        sums_in: what the sums are rounded to after every micro-batch.
    """
    mae = stages.chosen({"optimizer": name})
    plan = Plan.of(mae, stages.IMAGES, 1)
    master = stages.task_of(mae).train().to(precision).float()  # DeepSpeed's master weights begin as rounded ones
    optimizer = optimizer_of(stages.groups_of(master), mae.optimizer)
    task = stages.task_of(mae).train()
    start = _copy(master)
    losses = []
    for step in range(plan.steps):
        task.load_state_dict(master.state_dict())
        task.to(precision)
        optimizer.zero_grad()
        found = []
        for first in range(step * stages.GLOBAL, (step + 1) * stages.GLOBAL, stages.MICRO):
            loss = task(stages.noise(np.arange(first, first + stages.MICRO)))
            task.zero_grad()
            (loss * (scale / plan.accumulation)).backward()
            for sum_of, parameter in zip(master.parameters(), task.parameters(), strict=True):
                if parameter.grad is not None:
                    grad = parameter.grad.float()
                    grad = grad if sum_of.grad is None else sum_of.grad + grad
                    sum_of.grad = grad.to(sums_in).float()
            found.append(loss.item())
        for parameter in master.parameters():
            if parameter.grad is not None:
                parameter.grad /= scale
        torch.nn.utils.clip_grad_norm_(master.parameters(), mae.optimizer.clip)
        for group in optimizer.param_groups:
            group["lr"] = plan.lr(step) * group["lr_scale"]
        optimizer.step()
        master.to(weights_in).float()
        losses.append(sum(found) / len(found))
    return Steps(losses, start, _copy(master))


def _copy(task: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in task.state_dict().items()}
