"""Damage to files of every kind that is read, for fuzz_readers.py: to their bytes, and to what they say."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

Draw = np.random.Generator
NUMBERS = (
    0,
    1,
    2,
    7,
    127,
    128,
    255,
    256,
    65535,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
VALUES: tuple[Any, ...] = (
    *(
        0,
        -1,
        1,
        2**31,
        2**40,
        2**63,
        -(2**63) - 1,
        10**400,
        1.5,
        float("nan"),
        float("inf"),
        True,
        None,
        "",
        "x" * 5000,
    ),
    *("..", "../x", "/etc/passwd", "a\0b", "\ud800", "0", "1e9", [], {}, [[]], [None], {"a": 1}, ["x"], [-1], "train"),
    *("pipe:ls", "nope://x/y", "/dev/zero", "/proc/self/mem", "/", ".", "train.index.safetensors", "manifest.json"),
)
TAR_FIELDS = ((0, 100), (124, 12), (124, 12), (156, 1), (257, 8), (345, 155), (157, 100))  # place and width
TAR_TEXTS = (
    *(b"0" * 11, b"7" * 11, b"00000000100", b"\x80" + b"\0" * 10 + b"\x01", b"\xff" * 12, b"\x80\x7f" + b"\xff" * 10),
    *(
        b"",
        b"../../x.jpg",
        b"/x.jpg",
        b".",
        b"a/.jpg",
        b"x/1.jpg/",
        b"\xff\xfe.jpg",
        b"L",
        b"K",
        b"x",
        b"g",
        b"S",
        b"5",
    ),
)
PAX_TEXTS = (b"30 size=99999999999999999999\n\0", b"99999999 path=x\n", b"9 size=-1\n", b"11 path=\0\n\0")
JSON_TEXTS = (
    *(b"[" * 200_000, b'{"a":' * 100_000, b"9" * 100_000, b'"' + b"\\u0000" * 50, b"", b"null", b"\xef\xbb\xbf{}"),
)


def damaged(draw: Draw, data: bytes, other: bytes) -> bytes:
    """Bits, numbers, a stretch or an end that is not what it was."""
    made, kind = bytearray(data), int(draw.integers(0, 7))
    if kind == 0:
        for _ in range(int(draw.integers(1, 9))):
            made[int(draw.integers(0, len(made)))] ^= 1 << int(draw.integers(0, 8))
    elif kind == 1:
        del made[int(draw.integers(0, len(made))) :]
    elif kind == 2:
        start = int(draw.integers(0, len(made)))
        del made[start : start + int(draw.choice([1, 8, 512, int(draw.integers(1, 4000))]))]
    elif kind == 3:
        start, there = int(draw.integers(0, len(made))), int(draw.integers(0, len(other)))
        made[start:start] = other[there : there + int(draw.choice([1, 24, 512, 1024]))]
    elif kind == 4:
        start = int(draw.integers(0, len(made)))
        stretch = int(draw.integers(1, 600))
        made[start : start + stretch] = bytes([int(draw.choice([0, 255, 32, 48]))]) * len(made[start : start + stretch])
    else:
        for _ in range(int(draw.integers(1, 4))):
            width = int(draw.choice([1, 2, 4, 8]))
            at = int(draw.integers(0, max(1, len(made) - 8)))
            at = at // width * width if draw.random() < 0.5 else at
            number = int(NUMBERS[int(draw.integers(0, len(NUMBERS)))]) & (256**width - 1)
            made[at : at + width] = number.to_bytes(width, "big" if draw.random() < 0.1 else "little")
    return bytes(made)


def damaged_tar(draw: Draw, data: bytes, other: bytes) -> bytes:
    """A header's field is another, and its checksum is right."""
    if draw.random() < 0.4:
        return damaged(draw, data, other)
    made, blocks = bytearray(data), [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    for _ in range(int(draw.integers(1, 4))):
        at = blocks[int(draw.integers(0, len(blocks)))]
        start, width = [(0, 100), (124, 12), (124, 12), (156, 1), (257, 8), (345, 155), (157, 100)][
            int(draw.integers(0, 7))
        ]
        texts = [
            b"0" * 11,
            b"7" * 11,
            b"00000000100",
            b"\x80" + b"\0" * 10 + b"\x01",
            b"\xff" * 12,
            b"\x80\x7f" + b"\xff" * 10,
        ]
        texts += [
            b"",
            b"../../x.jpg",
            b"/x.jpg",
            b".",
            b"a/.jpg",
            b"x/1.jpg/",
            b"\xff\xfe.jpg",
            b"L",
            b"K",
            b"x",
            b"g",
            b"S",
            b"5",
        ]
        text = texts[int(draw.integers(0, len(texts)))]
        made[at + start : at + start + width] = text[:width].ljust(width, b"\0")
        made[at + 148 : at + 156] = b" " * 8
        made[at + 148 : at + 156] = b"%06o\0 " % sum(made[at : at + 512])
    if draw.random() < 0.2:
        at = blocks[int(draw.integers(0, len(blocks)))] + 512
        made[at : at + 40] = [
            b"30 size=99999999999999999999\n\0",
            b"99999999 path=x\n",
            b"9 size=-1\n",
            b"11 path=\0\n\0",
        ][int(draw.integers(0, 4))].ljust(40, b"\0")
    return bytes(made)


def damaged_beton(draw: Draw, data: bytes, other: bytes) -> bytes:
    """Numbers of the header, the fields, the records or the table are others."""
    if draw.random() < 0.3:
        return damaged(draw, data, other)
    made, fields = bytearray(data), struct.unpack_from("<H", data, 2)[0]
    table, records = struct.unpack_from("<Q", data, 16)[0], 24 + 1041 * fields
    for _ in range(int(draw.integers(1, 4))):
        where = int(draw.integers(0, 4))
        at = [0, 24, records, table][where] + int(draw.integers(0, [24, 1041 * fields, 200, len(data) - table][where]))
        width = int(draw.choice([1, 2, 4, 8]))
        number = int(draw.choice([int(draw.integers(0, len(data))), -1])) & (256**width - 1)
        if draw.random() < 0.5:
            number = NUMBERS[int(draw.integers(0, len(NUMBERS)))] & (256**width - 1)
        made[at : at + width] = number.to_bytes(width, "little")
    return bytes(made[: len(data)])


def another(draw: Draw, value: Any) -> Any:
    """A JSON value in which one thing, somewhere, is another."""
    down = isinstance(value, dict | list) and value and draw.random() < 0.93
    if isinstance(value, dict) and down:
        made = dict(value)
        key = list(made)[int(draw.integers(0, len(made)))]
        deed = draw.random()
        if deed < 0.06:
            del made[key]
        elif deed < 0.1:
            made[str(VALUES[int(draw.integers(0, len(VALUES)))])] = made[key]
        else:
            made[key] = another(draw, made[key])
        return made
    if isinstance(value, list) and down:
        made_, place = list(value), int(draw.integers(0, len(value)))
        deed = draw.random()
        if deed < 0.06:
            del made_[place]
        elif deed < 0.12:
            made_.insert(place, made_[place])
        else:
            made_[place] = another(draw, made_[place])
        return made_
    if isinstance(value, int) and draw.random() < 0.4:
        return value + int(draw.integers(-3, 4))
    return VALUES[int(draw.integers(0, len(VALUES)))]


def damaged_json(draw: Draw, data: bytes, other: bytes) -> bytes:
    """Text that is not what it was, in its letters or in its values."""
    kind = draw.random()
    if kind < 0.2:
        return damaged(draw, data, other)
    if kind < 0.27:
        texts = [
            b"[" * 200_000,
            b'{"a":' * 100_000,
            b"9" * 100_000,
            b'"' + b"\\u0000" * 50,
            b"",
            b"null",
            b"\xef\xbb\xbf{}",
        ]
        text, at = texts[int(draw.integers(0, len(texts)))], int(draw.integers(0, len(data)))
        return text if draw.random() < 0.5 else data[:at] + text + data[at:]
    value = json.loads(data)
    for _ in range(int(draw.integers(1, 3))):
        value = another(draw, value)
    return json.dumps(value).encode("utf-8", "backslashreplace")


def damaged_index(draw: Draw, data: bytes, other: bytes) -> bytes:
    """A column's numbers, type, length or place are others."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    kind = draw.random()
    if kind < 0.12:
        return damaged(draw, data, other)
    if kind < 0.4:
        text = damaged_json(draw, json.dumps(header).encode(), other)
        if draw.random() < 0.1:
            length = NUMBERS[int(draw.integers(0, len(NUMBERS)))]
            return length.to_bytes(8, "little") + text + body
        return len(text).to_bytes(8, "little") + text + body
    names = [name for name in header if name != "__metadata__"]
    for _ in range(int(draw.integers(1, 3))):
        about = header[names[int(draw.integers(0, len(names)))]]
        start, stop = about["data_offsets"]
        width = int(about["dtype"][1:]) // 8
        if stop - start < width:
            continue
        at = start + int(draw.integers(0, (stop - start) // width)) * width
        number = int.from_bytes(body[at : at + width], "little") + int(draw.integers(-3, 4))
        if draw.random() < 0.5:
            number = NUMBERS[int(draw.integers(0, len(NUMBERS)))]
        body[at : at + width] = (number % 256**width).to_bytes(width, "little")
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def damaged_list(draw: Draw, data: bytes, other: bytes) -> bytes:
    """A list of files whose entries are others."""
    if draw.random() < 0.3:
        return damaged(draw, data, other)
    length = int.from_bytes(data[-16:-8], "little")
    begin = len(data) - 16 - length
    text = damaged_json(draw, data[begin:-16], other)
    return data[:begin] + text + len(text).to_bytes(8, "little") + data[-8:]
