"""What an engine has learned: written below a folder, read again, and as a plain state dict."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

STATE = "state"  # the folder of DeepSpeed's files inside a checkpoint


def save(engine: Any, folder: Path) -> None:
    """Write this rank's part of weights and optimizer below ``folder``. All ranks call it."""
    engine.save_checkpoint(str(folder), tag=STATE, save_latest=False)
    if dist.get_rank() == 0:
        for script in folder.glob("zero_to_*.py"):  # DeepSpeed's own programs; a checkpoint holds data only
            script.unlink()


def load(engine: Any, folder: Path) -> None:
    """Read what ``save`` wrote, on as many ranks and at the same stage. All ranks call it."""
    with contextlib.redirect_stdout(io.StringIO()):
        loaded, _ = engine.load_checkpoint(str(folder), tag=STATE)
    if loaded is None:
        raise RuntimeError(f"DeepSpeed found no state in {folder}")


def weights(engine: Any) -> dict[str, Tensor]:
    """The task's state dict on the CPU, float32 where trained; whole on rank 0. All ranks call it."""
    from deepspeed.utils import safe_get_full_fp32_param

    found: dict[str, Tensor] = {}
    master = engine.bfloat16_enabled() or engine.zero_optimization_stage() == 3
    for name, parameter in engine.module.named_parameters():
        if master and parameter.requires_grad:
            whole = safe_get_full_fp32_param(parameter)
        elif engine.zero_optimization_stage() == 3:
            whole = _gathered(parameter)
        else:
            whole = parameter.detach()
        if dist.get_rank() == 0:
            found[name] = whole.float().cpu().clone()
    if dist.get_rank() == 0:
        kept = set(engine.module.state_dict())
        found |= {n: b.detach().cpu().clone() for n, b in engine.module.named_buffers() if n in kept}
    return found


def _gathered(parameter: nn.Parameter) -> Tensor:
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def safe_checkpoint_engine() -> Any:
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
