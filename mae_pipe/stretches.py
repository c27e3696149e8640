"""Parts of the tensors of a safetensors file, read as they are asked for.

The library maps the file; what was looked at through a map counts as the process's memory until the map is closed,
the whole of a large checkpoint at last.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mae_pipe.errors import RunError
from mae_pipe.weights import DTYPES, LENGTH

TORCH = {name: dtype for dtype, name in DTYPES.items()}


class Stretches:
    """What is in a file, which is open only while it is read.

    Raises:
        SafetensorError: it is no safetensors file, or has types that we never write.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as file:  # finds headers that are wrong, and tensors that overlap
            self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        self._path = path
        with path.open("rb") as opened:
            length = int.from_bytes(opened.read(LENGTH), "little")
            header = json.loads(opened.read(length))
        self._begins = {name: LENGTH + length + header[name]["data_offsets"][0] for name in self.shapes}
        if strange := {header[name]["dtype"] for name in self.shapes} - TORCH.keys():
            raise SafetensorError(f"{path.name} has numbers of the type {sorted(strange)[0]}")
        self.dtypes = {name: TORCH[header[name]["dtype"]] for name in self.shapes}

    def numel(self, name: str) -> int:
        return torch.Size(self.shapes[name]).numel()

    def read(self, name: str, begin: int = 0, end: int | None = None) -> Tensor:
        """The numbers from ``begin`` to ``end`` of a tensor, flat.

        Raises:
            RunError: the file is gone, or shorter than it was.
        """
        dtype = self.dtypes[name]
        found = torch.empty((self.numel(name) if end is None else end) - begin, dtype=dtype)
        memory = memoryview(found.view(torch.uint8).numpy())  # type: ignore[arg-type]
        try:
            with self._path.open("rb", buffering=0) as opened:
                opened.seek(self._begins[name] + begin * dtype.itemsize)
                while memory:
                    count = opened.readinto(memory)
                    if not count:
                        raise OSError("it has become shorter")
                    memory = memory[count:]
        except OSError as error:
            raise RunError(
                f"{self._path} cannot be read any more: {error.strerror or error}; check the disk, or go on from an "
                "earlier checkpoint with --resume PATH"
            ) from error
        return found
