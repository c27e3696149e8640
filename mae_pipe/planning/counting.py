"""Bytes of tensors, counted as operations make them and as they are freed; on real devices or on shapes alone."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside it, ``now`` is the memory of all tensors that operations made and that are still there, in bytes.

    Gradients and saved activations count too; what an operation takes inside itself is not seen.

    Args:
        shapes: count tensors of the meta device, which have a shape and no memory; else all the others.
    """

    def __init__(self, *, shapes: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shapes, self.now, self.most = shapes, 0, 0
        self.sent: dict[str, int] = {}  # collective -> bytes that it was given or gave, the larger of both
        self._seen: dict[int, tuple[weakref.ref[Any], int]] = {}

    def add(self, tensor: Tensor) -> None:
        """Count a tensor that was made outside."""
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        known = self._seen.get(key)
        if known is not None and known[0]() is storage:
            self.now += size - known[1]  # it may have been resized
            self._seen[key] = (known[0], size)
        else:

            def forget(_: object, key: int = key) -> None:
                self.now -= self._seen.pop(key)[1]

            self._seen[key] = (weakref.ref(storage, forget), size)
            self.now += size
        self.most = max(self.most, self.now)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, out)) if isinstance(leaf, Tensor)]
        for tensor in tensors:
            if (tensor.device.type == "meta") == self.shapes:
                self.add(tensor)
        if func.namespace == "c10d" and tensors:
            name = func.overloadpacket.__name__.strip("_")
            size = max(t.numel() * t.element_size() for t in tensors)
            self.sent[name] = self.sent.get(name, 0) + size
        return out

    def mark(self) -> int:
        """The most that was held since the last mark."""
        most, self.most = self.most, self.now
        return most
