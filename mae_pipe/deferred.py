"""Models whose parameters are not there yet: how each begins is noted, and done when it is wanted.

A model that is larger than a host's memory can so be built whole and filled part by part. The first weights
are those of the model built as always, to the last bit: what they draw from torch's generator is drawn in the same
order, and the generator's state before each drawing is noted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from mae_pipe.errors import RecipeError

WITHOUT_READING = (torch.ops.aten.detach.default, torch.ops.aten.new_empty.default, torch.ops.aten.empty_like.default)
META = torch.device("meta")
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class _Written:
    """One operation that wrote into a parameter, or into a part of it."""

    operation: Callable[..., Any]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    generator: Tensor | None  # torch's state before it; None: it drew nothing

    def again(self, whole: Tensor) -> None:
        """Do it to ``whole``, the parameter's numbers in a row."""
        if self.generator is not None:
            torch.random.set_rng_state(self.generator)
        self.operation(whole.as_strided(self.size, self.stride, self.offset), *self.arguments, **self.options)


class _Noting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """New tensors without numbers have no memory; what is written into them is noted."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.written: dict[int, list[_Written]] = {}  # by storage
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._alive: list[Tensor] = []  # a storage that is gone could give its number to another

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func is torch.ops.aten.empty.memory_format:
            made = func(*args, **{**options, "device": META, "pin_memory": None})
            self._alive.append(made)
            return made
        if func is torch.ops.aten._to_copy.default and options.get("device") == META and not args[0].is_meta:
            return args[0]  # "to the device of that weight"; it has its numbers already
        if not any(isinstance(value, Tensor) and value.is_meta for value in args):
            return func(*args, **options)
        if func._schema.is_mutable and not any(isinstance(value, Tensor) and value.is_meta for value in args[1:]):
            return self.note(func, args[0], args[1:], options, random=torch.Tag.nondeterministic_seeded in func.tags)
        if func.is_view or func in WITHOUT_READING:
            return func(*args, **options)
        raise RecipeError(
            f"a first weight of this model is made of another one (by {func}), so it cannot be built block by block; "
            "set engine.sharded_construction to false"
        )

    def note(
        self, operation: Any, target: Tensor, arguments: tuple[Any, ...], options: dict[str, Any], *, random: bool
    ) -> Tensor:
        """Note what would write into ``target``, and draw what it would draw."""
        state = torch.random.get_rng_state() if random else None
        place = tuple(target.shape), target.stride(), int(target.storage_offset())
        self.written.setdefault(_storage(target), []).append(_Written(operation, *place, arguments, options, state))
        if random:  # what comes after draws on from here
            operation(self._scratch(target).as_strided(*place), *arguments, **options)
        return target

    def _scratch(self, target: Tensor) -> Tensor:
        """Memory for a tensor that nobody will see; always the same, as a heap of freed ones is not given back."""
        needed = target.untyped_storage().nbytes()
        if self._memory.nbytes < needed:
            self._memory = torch.empty(needed, dtype=torch.uint8)
        return self._memory[:needed].view(target.dtype)


@contextmanager
def _noting() -> Iterator[_Noting]:
    """Also of those of torch's initialisations that do nothing to what has no memory."""
    noting = _Noting()
    usual = {name: getattr(nn.init, name) for name in ("_no_grad_trunc_normal_", "orthogonal_")}

    def noted(name: str, tensor: Tensor, *arguments: Any, **options: Any) -> Tensor:
        if not tensor.is_meta:
            return usual[name](tensor, *arguments, **options)  # type: ignore[no-any-return]
        with _disable_current_modes():
            return noting.note(usual[name], tensor, arguments, options, random=True)

    try:
        for name in usual:
            setattr(nn.init, name, partial(noted, name))
        with noting:
            yield noting
    finally:
        for name, function in usual.items():
            setattr(nn.init, name, function)


def deferred(build: Callable[[], M]) -> M:
    """The model that ``build`` makes, with parameters on the meta device that ``begin`` fills."""
    with _noting() as noting:
        model = build()
    for parameter in model.parameters():
        if parameter.is_meta:
            parameter.written = noting.written.get(_storage(parameter), [])  # type: ignore[attr-defined]
    return model


def begin(parameter: nn.Parameter) -> Tensor:
    """The first numbers of a parameter of a ``deferred`` model; torch's generator stays as it is."""
    if not parameter.is_meta:
        return parameter.detach()
    whole = torch.empty(parameter.untyped_storage().nbytes() // parameter.element_size(), dtype=parameter.dtype)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for noted in parameter.written:  # type: ignore[attr-defined]
            noted.again(whole)
    return whole.as_strided(parameter.shape, parameter.stride(), parameter.storage_offset())


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
