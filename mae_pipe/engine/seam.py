"""A task and its parameter groups become a stepping engine.

Its traps (docs/design.md) end in this package, the only one that imports deepspeed.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mae_pipe import launch
from mae_pipe.engine import state
from mae_pipe.engine.config import config_of
from mae_pipe.engine.library import deepspeed
from mae_pipe.optim import Groups, adamw
from mae_pipe.recipe import Recipe
from mae_pipe.speeding import keep_memory


class Engine:
    """A task under DeepSpeed on this rank's device.

    Args:
        task: its forward takes a batch and gives a scalar loss, the mean over the micro-batch.
        groups: from ``optim.parameter_groups``, of the task's parameters.
        recipe: optimizer, engine.
        micro_batch: images of one rank at once.
    """

    def __init__(self, task: nn.Module, groups: Groups, recipe: Recipe, *, micro_batch: int) -> None:
        here = launch.join()
        self.rank, self.world = here.rank, here.world
        if torch.cuda.is_available():
            self.device = torch.device("cuda", here.local_rank)
        else:
            self.device = torch.device("cpu")
            keep_memory()
        library = deepspeed()
        task.to(self.device)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # prints of memory, without end
            warnings.simplefilter("ignore")
            self._engine, self._optimizer, _, _ = library.initialize(
                model=task,
                optimizer=adamw(groups, recipe),
                config=config_of(recipe, micro_batch),
                dist_init_required=False,
            )
        self._engine.checkpoint_engine = state.safe_checkpoint_engine()
        self._scales = [group.get("lr_scale", 1.0) for group in self._optimizer.param_groups]
        # ZeRO makes groups of its own, to which the time-out of the job's group does not reach.
        set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout  # torch < 2.14
        for group in list(dist.distributed_c10d._world.pg_map):
            set_timeout(launch.TIMEOUT, group)

    @property
    def task(self) -> nn.Module:
        """The module inside; at ZeRO 3 its weights are there only during a call of the engine."""
        return self._engine.module  # type: ignore[no-any-return]

    @property
    def stage(self) -> int:
        return int(self._engine.zero_optimization_stage())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the task."""
        return self._engine(*args, **kwargs)

    def train(self, mode: bool = True) -> None:
        self._engine.train(mode)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch; the caller has divided its loss by the accumulation."""
        self._engine.backward(loss)

    def step(self, lr: float) -> bool:
        """One optimizer step with every group's ``lr * lr_scale``; False if the gradients were not finite."""
        for group, scale in zip(self._optimizer.param_groups, self._scales, strict=True):
            group["lr"] = lr * scale
        self._engine.step()
        return bool(self._engine.was_step_applied())

    def gradient_norm(self) -> float:
        """The norm of the last step's gradient over all ranks, before clipping. Waits for the device."""
        norm = self._engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def save(self, folder: Path) -> None:
        """Write this rank's part of weights and optimizer below ``folder``. All ranks call it."""
        state.save(self._engine, folder)

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote, on as many ranks and at the same stage. All ranks call it."""
        state.load(self._engine, folder)

    def weights(self) -> dict[str, Tensor]:
        """The task's state dict on the CPU, float32 where trained; whole on rank 0. All ranks call it."""
        return state.weights(self._engine)

    def close(self) -> None:
        """Free the engine; another may follow in this process."""
        self._engine.destroy()
