"""A task and its parameter groups become a stepping engine.

Its traps (docs/design.md) end in this package, the only one that imports deepspeed.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mae_pipe import launch, watchdog
from mae_pipe.attention import choose_attention
from mae_pipe.engine import state
from mae_pipe.engine.average import Average
from mae_pipe.engine.config import config_of, require
from mae_pipe.engine.library import deepspeed
from mae_pipe.engine.optimizers import optimizer_of
from mae_pipe.engine.profiling import profiled
from mae_pipe.engine.sharded import part
from mae_pipe.engine.state import Held, Read
from mae_pipe.engine_tables import Profile
from mae_pipe.optim import Groups
from mae_pipe.recipe import Recipe
from mae_pipe.recompute import recompute
from mae_pipe.speeding import compile_blocks, give_back_memory, keep_memory

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """A task under DeepSpeed on this rank's device.

    Args:
        task: its forward takes a batch and gives a scalar loss, the mean over the micro-batch.
        groups: from ``optim.parameter_groups``, of the task's parameters.
        recipe: optimizer, engine.
        micro_batch: images of one rank at once.
        average: decay of an average of the weights that is kept beside them; 0: none is.
    """

    def __init__(
        self, task: nn.Module, groups: Groups, recipe: Recipe, *, micro_batch: int, average: float = 0.0
    ) -> None:
        here = launch.join()
        self.rank, self.world, self.precision = here.rank, here.world, recipe.engine.precision
        if torch.cuda.is_available():
            self.device = torch.device("cuda", here.local_rank)
        else:
            self.device = torch.device("cpu")
        require(recipe, here.world)
        spare = recipe.engine.offload_optimizer != "none"  # the machine's memory is what runs out first
        if spare:
            give_back_memory()
        library = deepspeed()
        config, precision = config_of(recipe, micro_batch), PRECISIONS[recipe.engine.precision]
        self._linear = torch.nn.functional.linear
        if recipe.engine.sharded_construction:
            part(task, config, self.device, precision)
        else:
            task.to(self.device)
        recompute(task, recipe.engine.checkpoint_blocks)
        if recipe.engine.compile:
            compile_blocks(task)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # prints of memory, without end
            warnings.simplefilter("ignore")
            self._engine, self._optimizer, _, _ = library.initialize(
                model=task,
                optimizer=optimizer_of(groups, recipe),
                config=config,
                dist_init_required=False,
            )
        if self.device.type == "cpu" and not spare:
            keep_memory()  # not before: what was made on the way here is given back
        choose_attention(self.task, precision)  # ZeRO 3 casts weights behind the task's back
        self._average = Average(self._engine, average) if average else None
        self.scaled_too_high = False  # whether that alone may be why the last step was skipped
        self._profile, self._steps = recipe.engine.profile, 0
        self._groups = [
            (group.get("lr_scale", 1.0), group.get("held_back", 0.0), group["weight_decay"] > 0)
            for group in self._optimizer.param_groups
        ]
        # ZeRO makes groups of its own, to which the time-out of the job's group does not reach.
        set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout  # torch < 2.14
        for group in list(dist.distributed_c10d._world.pg_map):
            set_timeout(max(launch.TIMEOUT, 2 * timedelta(minutes=recipe.faults.hang_minutes)), group)
        watchdog.limits(lost=recipe.faults.lost_seconds, hang=60 * recipe.faults.hang_minutes)

    @property
    def task(self) -> nn.Module:
        """The module inside; at ZeRO 3 its weights are there only during a call of the engine."""
        return self._engine.module  # type: ignore[no-any-return]

    @property
    def stage(self) -> int:
        return int(self._engine.zero_optimization_stage())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the task."""
        if self.rank == 0 and self._profile.step == self._steps + 1 and self._engine.training:
            choice, self._profile = self._profile, Profile()
            return profiled(self._engine, choice, *args, **kwargs)
        return self._engine(*args, **kwargs)

    def train(self, mode: bool = True) -> None:
        self._engine.train(mode)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch; the caller has divided its loss by the accumulation."""
        self._engine.backward(loss)

    def step(self, lr: float, *, epoch: float = math.inf, decay: float | None = None) -> bool:
        """One optimizer step with every group's ``lr * lr_scale``.

        Args:
            epoch: groups that are held back longer stay as they are.
            decay: weight decay of the groups that have one; None: as they were made.

        Returns:
            False if the gradients were not finite, and the step was skipped. In fp16 a step is also skipped
            where the loss was scaled too high: then ``scaled_too_high`` says that there is a lower scale to try.
        """
        for group, (scale, held, decays) in zip(self._optimizer.param_groups, self._groups, strict=True):
            group["lr"] = lr * scale if epoch >= held else 0.0
            if decay is not None and decays:
                group["weight_decay"] = decay
        scaler: Any = getattr(self._optimizer, "loss_scaler", None)  # not kept: a checkpoint may replace it
        lower = False
        if getattr(scaler, "dynamic", False):
            lower = scaler.cur_scale > scaler.min_scale
            scaler.raise_error_at_min_scale = False  # the loop has its own patience, and a sentence
        self._engine.step()
        self._steps += 1
        applied = bool(self._engine.was_step_applied())
        self.scaled_too_high = lower and not applied
        if applied and self._average is not None:
            self._average.update()
        return applied

    def averaged(self) -> AbstractContextManager[None]:
        """Within it the task computes with the average of the weights, if one is kept. All ranks call it."""
        return contextlib.nullcontext() if self._average is None else self._average.in_use()

    def gradient_norm(self) -> float:
        """The norm of the last step's gradient over all ranks, before clipping. Waits for the device."""
        norm = self._engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def held(self) -> Held:
        """What this rank holds, in pieces of parameters. All ranks call it between two steps."""
        return state.held(self._engine, self._averages)

    def put(self, read: Read, kinds: set[str], numbers: dict[str, Any]) -> None:
        """Take over pieces that ranks of whatever number and stage held. All ranks call it."""
        state.put(self._engine, read, kinds, numbers, self._averages)

    @property
    def _averages(self) -> list[Tensor] | None:
        return None if self._average is None else self._average.flats

    def weights(self) -> dict[str, Tensor]:
        """The task's state dict on the CPU, float32 where trained; whole on rank 0. All ranks call it."""
        return state.weights(self._engine)

    def close(self) -> None:
        """Free the engine; another may follow in this process."""
        self._engine.destroy()
        torch.nn.functional.linear = self._linear  # ZeRO 3 puts its own there, for every model
