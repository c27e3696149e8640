"""Small numbers that all ranks agree on, told one call later, so that nobody waits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mae_pipe.launch import TIMEOUT


class Consensus:
    """The greatest of what the ranks say under each name, told one call later.

    Nobody waits, neither for the others nor for a device: the numbers travel between the processors while the step
    goes on. A minimum is the greatest negative: say ``-x``, and turn the sign of the answer. All ranks make and ask
    it together.

    Args:
        names: of the numbers, which are integers.
        unsaid: what is told of every name in the first call, when nobody has said anything.
    """

    def __init__(self, names: Iterable[str], *, unsaid: int = 0) -> None:
        import torch.distributed as dist

        self._names, self._unsaid = tuple(names), unsaid
        alone = not dist.is_initialized() or dist.get_world_size() == 1
        self._group: Any = None if alone else dist.new_group(backend="gloo", timeout=TIMEOUT)
        self._asked: tuple[Any, Any] | None = None  # the numbers, and what to wait for

    def __call__(self, **numbers: int) -> dict[str, int]:
        """Say a number for every name; the maxima of what all said in the call before (alone: what was just said)."""
        import torch
        import torch.distributed as dist

        if set(numbers) != set(self._names):
            raise ValueError(f"said {sorted(numbers)}; expected {sorted(self._names)}")
        if self._group is None:
            return numbers
        answer = self.last()
        said = torch.tensor([numbers[name] for name in self._names], dtype=torch.int64)
        self._asked = said, dist.all_reduce(said, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return answer

    def last(self) -> dict[str, int]:
        """The maxima of what all said in the newest call; waits for it. Before any call, or asked twice: ``unsaid``."""
        if self._asked is None:
            return dict.fromkeys(self._names, self._unsaid)
        said, sent = self._asked
        sent.wait()
        self._asked = None
        return dict(zip(self._names, said.tolist(), strict=True))
