"""Memory that worker processes fill and tensors lie in: a few slots, each for one batch, used again and again.

A slot is a file in memory without a name (``memfd``). Nothing lies in ``/dev/shm``, which containers keep small, and
the kernel frees it with the last process or tensor that has it, however they end.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from mae_pipe.data.layout import Arrays, Layout
from mae_pipe.errors import DataError, TrainingError


class Slot:
    """The memory of one batch.

    Args:
        number: its place among the slots, by which workers know it.
        descriptor: of its file.
    """

    def __init__(self, number: int, layout: Layout, descriptor: int) -> None:
        self.number, self.layout = number, layout
        os.ftruncate(descriptor, layout.bytes)
        self._memory = mmap.mmap(descriptor, layout.bytes)
        if torch.cuda.is_available():
            _lock(self, self._memory)

    def arrays(self) -> Arrays:
        """Its arrays, to write or to read while it is nobody's."""
        return self.layout.arrays(np.frombuffer(self._memory, np.uint8))

    def tensors(self, unused: Callable[[Slot], None]) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Pixels and maps where they lie; ``unused`` is called when nobody holds any, nor a part of one."""
        whole = np.frombuffer(self._memory, np.uint8)  # under all tensors and what is cut from them
        weakref.finalize(whole, unused, self).atexit = False
        pixels, maps, _, _ = self.layout.arrays(whole)
        return tuple(map(torch.from_numpy, pixels)), None if maps is None else torch.from_numpy(maps)


class Slots:
    """All slots of one pass over images.

    Args:
        layout: of every batch.
        count: of slots.
    """

    def __init__(self, layout: Layout, count: int) -> None:
        if not hasattr(os, "memfd_create"):
            raise DataError('worker processes need Linux; set data.worker_kind = "thread"')
        self._descriptors: list[int] = []
        try:
            for _ in range(count):
                self._descriptors.append(os.memfd_create("mae-pipe batch", os.MFD_CLOEXEC))
            slots = [Slot(number, layout, descriptor) for number, descriptor in enumerate(self._descriptors)]
        except OSError as error:
            self._close_descriptors()
            raise TrainingError(
                f"there is no shared memory for {count} batches of {layout.bytes / 1e6:,.0f} MB ({error.strerror}); "
                f'lower data.micro_batch, or set data.worker_kind = "thread"'
            ) from error
        self._unused, self._closed = slots, False  # the last used comes first: its memory is there, and warm

    @contextlib.contextmanager
    def shared(self) -> Iterator[list[int]]:
        """The descriptors of their files, to be handed to workers meanwhile."""
        try:
            yield self._descriptors
        finally:
            self._close_descriptors()

    def take(self) -> Slot:
        """One that nobody holds."""
        return self._unused.pop()

    def lend(self, slot: Slot) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """The tensors of a slot that was taken; copies of them where the last free slot would be given away."""
        pixels, maps = slot.tensors(self._back)
        if self._unused:
            return pixels, maps
        return tuple(group.clone() for group in pixels), None if maps is None else maps.clone()

    def close(self) -> None:
        """Give all memory back, that of lent slots as soon as nobody holds it."""
        self._closed = True
        self._unused.clear()
        self._close_descriptors()

    def _back(self, slot: Slot) -> None:
        if not self._closed:
            self._unused.append(slot)

    def _close_descriptors(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())


def _lock(slot: Slot, memory: mmap.mmap) -> None:
    """Have a GPU's driver lock the pages, so that it copies from them by itself; if it refuses, copies are slower."""
    address = np.frombuffer(memory, np.uint8).ctypes.data
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    if int(runtime.cudaHostRegister(address, len(memory), 0)) == 0:
        # Holds the memory until then: pages must be unlocked before they are given back.
        weakref.finalize(slot, _unlock, address, memory).atexit = False
        return
    with contextlib.suppress(RuntimeError):  # the next kernel would be taken for what failed: let it be this one
        torch.zeros(1, device="cuda")


def _unlock(address: int, memory: mmap.mmap) -> None:
    torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]
