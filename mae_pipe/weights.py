"""Safetensors whose bytes say only what is in them: the same weights and metadata give the same file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import save
from torch import Tensor

LENGTH = 8  # bytes, little-endian: how long the header is


def to_safetensors(weights: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """A safetensors file. Every metadata value is kept as JSON, but for ``format``, which is torch's.

    The library writes its metadata in the order of a hash map, another one in every process; here they
    are sorted, so that a file written again has the sha256 it had.
    """
    content = save(dict(weights), {"format": "pt", **{name: json.dumps(metadata[name]) for name in metadata}})
    end = LENGTH + int.from_bytes(content[:LENGTH], "little")
    header = json.loads(content[LENGTH:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    told = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    told += b" " * (-len(told) % LENGTH)  # the weights begin at a multiple of eight
    return len(told).to_bytes(LENGTH, "little") + told + content[end:]
