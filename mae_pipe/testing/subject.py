"""What a check looks at, and what it says when something does not hold."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mae_pipe.catalog import Catalog, Entry
from mae_pipe.errors import PluginError


class Skip(Exception):
    """A check cannot be tried here; the reason."""


@dataclass
class Subject:
    """A plugin under test.

    Attributes:
        make: builds one with what it is given by name, as a run does.
        entry: what its source says; None of an instance that somebody built.
        given: with what somebody built it.
    """

    make: Callable[..., Any]
    entry: Entry | None = None
    catalog: Catalog | None = None
    options: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: str, name: str, *, catalog: Catalog, options: dict[str, Any]) -> Subject:
        """An installed one, or one of a local file."""
        return cls(partial(_made, catalog, kind, name, options), catalog.entry(kind, name), catalog, options)

    @classmethod
    def built(cls, plugin: Any, **given: Any) -> Subject:
        """One that somebody built, with what it was ``given``."""
        return cls(lambda **_: plugin, given=given)

    def rebuilt(self, **given: Any) -> Any:
        """Another one, whose first weights are drawn anew."""
        if self.catalog is None or self.entry is None:
            raise Skip("it was built by its own test, and cannot be built again")
        return _made(self.catalog, self.entry.kind, self.entry.name, self.options, seed=99, **given)


def _made(catalog: Catalog, kind: str, name: str, options: dict[str, Any], *, seed: int = 0, **given: Any) -> Any:
    """Built as a run does it: first weights may be drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return catalog.build(kind, name, options, **given)


def hold(checks: Iterable[Callable[[Subject], str | None]], subject: Subject) -> None:
    """Raise ``PluginError`` for the first check that fails."""
    for check in checks:
        with suppress(Skip):
            check(subject)


def require(holds: bool, sentence: str) -> None:
    """Raise ``PluginError`` unless it holds."""
    if not holds:
        raise PluginError(sentence)


def same_shape(what: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Require a tensor of this shape."""
    require(isinstance(tensor, Tensor), f"{what} gave {type(tensor).__name__}, expected a tensor")
    require(tuple(tensor.shape) == shape, f"{what} gave shape {list(tensor.shape)}, expected {list(shape)}")


def finite(what: str, tensor: Tensor) -> None:
    """Require float32 numbers without NaN and infinity."""
    require(tensor.dtype == torch.float32, f"{what} gave {tensor.dtype}, expected float32")
    require(bool(torch.isfinite(tensor).all()), f"{what} gave numbers that are not finite")


def near(one: Tensor, other: Tensor, *, share: float = 1e-5, wrong: float = 0.0) -> bool:
    """Whether floats differ by at most ``share`` of their size, and whole numbers at no more than ``wrong`` of them."""
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return float((one != other).float().mean()) <= wrong
    one, other = one.detach().float(), other.detach().float()
    return float((one - other).norm()) <= share * float(other.norm()) + 1e-7


@contextmanager
def no_global_randomness(what: str, *, torch_too: bool = True) -> Iterator[None]:
    """Require that the generators which the whole process shares stay where they were."""
    before = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    kept, plain = np.random.get_state(legacy=False), random.getstate()
    yield
    drawn = []
    if torch_too and not torch.equal(before, torch.get_rng_state()):
        drawn.append("PyTorch's")
    if torch_too and cuda and not all(map(torch.equal, cuda, torch.cuda.get_rng_state_all())):
        drawn.append("CUDA's")
    if not np.array_equal(_numbers(kept), _numbers(np.random.get_state(legacy=False))):
        drawn.append("NumPy's")
    if plain != random.getstate():
        drawn.append("Python's")
    require(
        not drawn,
        f"{what} drew from {' and '.join(drawn)} global generator; "
        "draw from what it is given, so that a resumed run repeats what it did",
    )


def _numbers(state: Any) -> Any:
    return np.append(state["state"]["key"], state["state"]["pos"])


def images(count: int, channels: int, height: int, width: int, *, seed: int = 0) -> Tensor:
    """[B, C, H, W] normalised, smooth with some noise, each another."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, channels, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return smooth + 0.2 * torch.randn(count, channels, height, width, generator=generator)
