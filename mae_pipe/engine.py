"""The seam to DeepSpeed: a task and its parameter groups become a stepping engine.

The only file that imports deepspeed. Its traps (docs/design.md) end here: ZeRO stage 1 or
more always, one optimizer step by the loop and not by DeepSpeed's counter, restricted
unpickling, float32 gradient sums.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mae_pipe import launch
from mae_pipe.optim import Groups, adamw
from mae_pipe.recipe import Recipe

STATE = "state"  # the folder of DeepSpeed's files inside a checkpoint


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
        deepspeed = _deepspeed()
        task.to(self.device)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # prints of memory, without end
            warnings.simplefilter("ignore")
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=task,
                optimizer=adamw(groups, recipe, self.device),
                config=_config(recipe, micro_batch),
                dist_init_required=False,
            )
        self._engine.checkpoint_engine = _safe_checkpoint_engine()
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
        self._engine.save_checkpoint(str(folder), tag=STATE, save_latest=False)
        if self.rank == 0:
            for script in folder.glob("zero_to_*.py"):  # DeepSpeed's own programs; a checkpoint holds data only
                script.unlink()

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote, on as many ranks and at the same stage. All ranks call it."""
        with contextlib.redirect_stdout(io.StringIO()):
            loaded, _ = self._engine.load_checkpoint(str(folder), tag=STATE)
        if loaded is None:
            raise RuntimeError(f"DeepSpeed found no state in {folder}")

    def weights(self) -> dict[str, Tensor]:
        """The task's state dict on the CPU, float32 where trained; whole on rank 0. All ranks call it."""
        from deepspeed.utils import safe_get_full_fp32_param

        found: dict[str, Tensor] = {}
        master = self._engine.bfloat16_enabled() or self.stage == 3
        for name, parameter in self.task.named_parameters():
            if master and parameter.requires_grad:
                whole = safe_get_full_fp32_param(parameter)
            elif self.stage == 3:
                whole = self._gathered(parameter)
            else:
                whole = parameter.detach()
            if self.rank == 0:
                found[name] = whole.float().cpu().clone()
        if self.rank == 0:
            kept = set(self.task.state_dict())
            found |= {n: b.detach().cpu().clone() for n, b in self.task.named_buffers() if n in kept}
        return found

    def _gathered(self, parameter: nn.Parameter) -> Tensor:
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()

    def close(self) -> None:
        """Free the engine; another may follow in this process."""
        self._engine.destroy()


def _deepspeed() -> Any:
    """DeepSpeed, quiet, for the accelerator that torch has."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed calls collectives by names that torch is about to change; nothing that a user could mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    if not torch.cuda.is_available():
        # Its only CPU extension serves inference; compiling it would take a minute.
        deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def _config(recipe: Recipe, micro_batch: int) -> dict[str, Any]:
    """DeepSpeed's own configuration; users write recipes, since it passes over unknown keys."""
    choice = recipe.engine
    zero: dict[str, Any] = {"stage": choice.zero, "overlap_comm": False}
    if choice.persistence_threshold is not None:
        zero["stage3_param_persistence_threshold"] = choice.persistence_threshold
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # the loop steps; see facts on silently lost micro-batches
        "gradient_clipping": recipe.optimizer.clip,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if choice.precision == "bf16":
        config["bf16"] = {"enabled": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}  # 256 micro-batches: error 1.4e-3, in bf16 1.5e-2
    return config


def _safe_checkpoint_engine() -> Any:
    """DeepSpeed's default checkpoint engine, but it syncs what it writes and runs nothing that it reads."""
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    class SafeCheckpointEngine(TorchCheckpointEngine):  # type: ignore[misc]
        def save(self, state_dict: Any, path: str) -> None:
            with Path(path).open("wb") as file:
                torch.save(state_dict, file)
                file.flush()
                os.fsync(file.fileno())

        def load(self, path: str, map_location: Any = None) -> Any:
            with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
                return torch.load(path, map_location=map_location, weights_only=True)

    return SafeCheckpointEngine()
