"""Where plugins have to work: on other devices, in bfloat16, inside ``torch.compile``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)

from mae_pipe.errors import PluginError
from mae_pipe.testing.subject import near, require

UNTOLD = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
M = TypeVar("M")


def on_devices(what: str, plugin: M, work: Callable[[M, torch.device], dict[str, Tensor]]) -> str:
    """Require that ``work`` gives its tensors on the device where its inputs are; says what could be tried.

    Without a CUDA device the same calls are made with tensors that have a device and no numbers, so that
    a tensor made on the wrong one is found all the same.
    """
    expected = work(plugin, torch.device("cpu"))
    device = torch.device("cuda", 0)
    there = torch.cuda.is_available()
    try:
        found = work(_moved(plugin, device), device) if there else _dry(plugin, work, device)
    except UNTOLD as error:
        return f"on the CPU; not known of other devices ({type(error).__name__})"
    except Exception as error:
        said = str(error).lower()
        if "same device" in said or "two devices" in said or "device mismatch" in said:
            raise PluginError(f"{what} mixes devices: {_first_line(error)}; make tensors with device=") from error
        if there:
            raise
        return f"on the CPU; not known of other devices ({type(error).__name__}: {_first_line(error)})"
    _on(what, found, device)
    if not there:
        return "on the CPU, and follows its inputs' device (tried without one)"
    far = [name for name in expected if not near(found[name].cpu(), expected[name], share=1e-3, wrong=0.01)]
    require(not far, f"{what} gives other numbers on CUDA than on the CPU: {', '.join(far)}")
    alike = all(torch.equal(found[name].cpu(), expected[name]) for name in expected)
    return f"on the CPU and on CUDA, {'bit for bit alike' if alike else 'alike but for rounding'}"


def _dry(plugin: M, work: Callable[[M, torch.device], dict[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    """What ``work`` gives, without numbers."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    plugin = copy.deepcopy(plugin)
    with mode:
        _fake(plugin, mode, device)
        return work(plugin, device)


def _on(what: str, found: dict[str, Tensor], device: torch.device) -> None:
    for name, tensor in found.items():
        require(
            tensor.device.type == device.type,
            f"{what}: {name} is on {tensor.device} where its inputs are on {device}; make tensors with device=",
        )


def _moved(plugin: Any, device: torch.device) -> Any:
    return copy.deepcopy(plugin).to(device) if isinstance(plugin, nn.Module) else plugin


def _fake(plugin: Any, mode: FakeTensorMode, device: torch.device) -> None:
    """Put parameters and buffers on a device that is not there."""
    for module in plugin.modules() if isinstance(plugin, nn.Module) else []:
        for name, parameter in module._parameters.items():
            if parameter is not None:
                moved = mode.from_tensor(parameter.detach()).to(device)
                module._parameters[name] = nn.Parameter(moved, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = mode.from_tensor(buffer).to(device)


def compiled(what: str, function: Callable[..., Any], *inputs: Tensor) -> None:
    """Require that ``torch.compile(fullgraph=True)`` takes a function whole and gives the same."""
    torch._dynamo.reset()
    expected = function(*inputs)
    try:
        with _quiet_dynamo():
            found = torch.compile(function, fullgraph=True, backend="eager", dynamic=False)(*inputs)
    except Exception as error:
        raise PluginError(f"{what} breaks the graph of torch.compile: {_first_line(error)}") from error
    finally:
        torch._dynamo.reset()
    require(near(found, expected, share=1e-4), f"{what} gives other numbers inside torch.compile")


@contextmanager
def _quiet_dynamo() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it traces, not of what is traced
        yield


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
