"""A beton made without ffcv, of any fields: files in memory for tests and for fuzzing."""

from __future__ import annotations

import struct
from typing import Any

PAGE = 512


def plain_beton(fields: list[tuple[str, int]], samples: list[tuple[Any, ...]]) -> bytes:
    """Fields are (name, ffcv's number of a type); values: bytes, numbers, or (mode, width, height, bytes)."""
    described = b"".join(struct.pack("<B16s1024x", kind, name.encode()) for name, kind in fields)
    record, size, aligned = [], 0, 1
    for _, kind in fields:  # as numpy aligns: numbers to 8, structs not at all
        if kind in (0, 1, 4, 6):
            size, aligned = -(-size // 8) * 8, 8
        record.append(size)
        size += {2: 13, 3: 16, 5: 16}.get(kind, 8)
    size = -(-size // aligned) * aligned
    begin = 24 + len(described) + size * len(samples)
    data, rows, table = bytearray(-begin % PAGE), bytearray(size * len(samples)), b""
    for number, values in enumerate(samples):
        for at, (_, kind), value in zip(record, fields, values, strict=True):
            where = number * size + at
            if kind in (0, 1):
                struct.pack_into("<d" if kind == 0 else "<q", rows, where, value)
                continue
            piece = value[3] if kind == 2 else value
            pointer = begin + len(data)
            table += struct.pack("<QQQ", number, pointer, len(piece))
            data += piece
            if kind == 2:
                struct.pack_into("<BHHQ", rows, where, *value[:3], pointer)
            elif kind in (3, 5):
                struct.pack_into("<QQ", rows, where, pointer, len(piece))
            else:
                struct.pack_into("<Q", rows, where, pointer)
    header = struct.pack("<HHIQQ", 2, len(fields), PAGE, len(samples), begin + len(data))
    return header + described + bytes(rows) + bytes(data) + table
