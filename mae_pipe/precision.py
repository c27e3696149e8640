"""Numbers that must stay float32 in a model that an engine casts to bfloat16."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def keep_float32(module: nn.Module, move: Callable[[], object]) -> None:
    """Run ``move``, a change of device or precision, but give every tensor of ``module`` its precision back."""
    before = {name: tensor.data for name, tensor in (*module.named_buffers(), *module.named_parameters())}
    move()
    for name, tensor in (*module.named_buffers(), *module.named_parameters()):
        if tensor.is_floating_point() and tensor.dtype != before[name].dtype:
            tensor.data = before[name].to(tensor.device)
