"""Safetensors whose bytes say only what is in them: the same weights and metadata give the same file."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

LENGTH = 8  # bytes, little-endian: how long the header is
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A tensor of a file to be: what the header says, and its numbers, piece by piece, when they are written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[Tensor]]

    @property
    def size(self) -> int:
        """Bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_safetensors(file: BinaryIO, entries: Iterable[Entry], metadata: Mapping[str, Any]) -> str:
    """Write a safetensors file, never holding more than one piece of a tensor; returns its sha256.

    Every metadata value is kept as JSON, but for ``format``, which is torch's. The order is the library's: wide
    numbers first, then by name; but metadata, which it writes in the order of a hash map, another one in every
    process, are sorted, so that a file written again has the sha256 it had.
    """
    told: dict[str, Any] = {n: json.dumps(value) for n, value in metadata.items()} | {"format": "pt"}
    header: dict[str, Any] = {"__metadata__": dict(sorted(told.items()))}
    ordered = sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))
    end = 0
    for entry in ordered:
        begin, end = end, end + entry.size
        header[entry.name] = {"dtype": DTYPES[entry.dtype], "shape": list(entry.shape), "data_offsets": [begin, end]}
    first = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    first += b" " * (-len(first) % LENGTH)  # the weights begin at a multiple of eight
    digest = hashlib.sha256()

    def put(data: bytes | memoryview) -> int:
        digest.update(data)
        file.write(data)
        return len(data)

    put(len(first).to_bytes(LENGTH, "little") + first)
    for entry in ordered:
        written = sum(put(_bytes(piece.detach().cpu().to(entry.dtype))) for piece in entry.pieces())
        if written != entry.size:
            raise ValueError(f"{entry.name} has {written} bytes, its shape {entry.shape} takes {entry.size}")
    return digest.hexdigest()


def to_safetensors(weights: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """A safetensors file in memory."""
    file = io.BytesIO()
    write_safetensors(file, map(entry_of, weights, weights.values()), metadata)
    return file.getvalue()


def entry_of(name: str, tensor: Tensor) -> Entry:
    """A tensor that is there already."""
    return Entry(name, tensor.dtype, tuple(tensor.shape), lambda: (tensor,))


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
