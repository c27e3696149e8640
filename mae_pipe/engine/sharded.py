"""A model that no process ever holds whole: each parameter is made, parted over the ranks and forgotten."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mae_pipe.deferred import begin
from mae_pipe.engine.library import deepspeed


def part(task: nn.Module, config: dict[str, Any], device: torch.device, precision: torch.dtype) -> None:
    """Give a ``deferred`` task its first weights as ZeRO 3 keeps them: every rank its part, in ``precision``.

    DeepSpeed's own way, to construct the model inside of ``zero.Init``, loses the initialisation that a model does
    after its layers are made; a timm ViT would begin with other weights, and nothing would say so.
    """
    parting = deepspeed().zero.Init(module=nn.Module(), config_dict_or_path=config, dtype=precision)
    for parameter in task.parameters():
        whole = begin(parameter).to(device, precision)
        there = nn.Parameter(whole, requires_grad=parameter.requires_grad)
        torch.utils.swap_tensors(parameter, there)  # type: ignore[no-untyped-call]  # so that whoever has the parameter, has it still
        parting._convert_to_zero_parameters([parameter])
    for name, buffer in task.named_buffers():
        owner, _, last = name.rpartition(".")
        setattr(task.get_submodule(owner), last, buffer.to(device))
