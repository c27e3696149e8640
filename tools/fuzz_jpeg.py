"""Mutated JPEGs and marks for the C decoder; run by fuzz_jpeg.sh, with sanitizers."""

from __future__ import annotations

import io
import sys
from collections import Counter
from typing import Any

import _native  # the one that was built with sanitizers
import numpy as np
from PIL import Image

KINDS: list[dict[str, Any]] = [
    *({"subsampling": s} for s in range(3)),
    {"subsampling": 2, "restart_marker_blocks": 5},
    {"subsampling": 0, "restart_marker_rows": 1},
    {"optimize": True},
    {"progressive": True},
]
SIZES = [(32, 32), (224, 224), (1, 1), (17, 5), (64, 48)]


def seeds(draw: np.random.Generator) -> list[tuple[bytes, int, int]]:
    """JPEGs of all kinds, with their sizes."""
    found = []
    for _ in range(12):
        width, height = (int(side) for side in draw.integers(8, 150, 2))
        coarse = Image.fromarray(draw.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((width, height))
        noisy = np.asarray(coarse).astype(int) + draw.integers(-30, 31, (height, width, 3))
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        for kind in [*KINDS, None]:
            out = io.BytesIO()
            quality = int(draw.choice([30, 75, 90, 98]))
            (image if kind is not None else image.convert("L")).save(out, "JPEG", quality=quality, **(kind or {}))
            found.append((out.getvalue(), width, height))
    return found


def mutated(draw: np.random.Generator, good: bytes, other: bytes) -> bytes:
    """One of seven kinds of damage."""
    data = bytearray(good)
    scan, frame = good.find(b"\xff\xda"), good.find(b"\xff\xc0")
    kind = int(draw.integers(0, 7))
    if kind == 0:  # bits
        for _ in range(int(draw.integers(1, 9))):
            data[int(draw.integers(0, len(data)))] ^= 1 << int(draw.integers(0, 8))
    elif kind == 1:  # the end is missing
        del data[int(draw.integers(2, len(data))) :]
    elif kind == 2:  # bytes of the header
        for _ in range(int(draw.integers(1, 5))):
            data[int(draw.integers(2, scan + 20))] = int(draw.choice([0, 255, 1, 127, 128, int(draw.integers(0, 256))]))
    elif kind == 3:  # a stretch is missing
        start = int(draw.integers(2, len(data)))
        del data[start : start + int(draw.integers(0, 400))]
    elif kind == 4:  # a stretch of another file
        start, there = int(draw.integers(2, len(data))), int(draw.integers(2, len(other)))
        data[start:start] = other[there : there + int(draw.integers(0, 300))]
    elif kind == 5 and frame > 0:  # another size
        for place in range(frame + 5, frame + 9):
            if draw.random() < 0.6:
                data[place] = int(draw.integers(0, 256))
    else:  # markers in the data
        for _ in range(int(draw.integers(1, 4))):
            place = int(draw.integers(scan, len(data) - 2))
            data[place : place + 2] = bytes([255, int(draw.choice([0, 0xD0, 0xD1, 0xD7, 0xD9, 0xFF, 0xC4, 1]))])
    return bytes(data)


def cut(draw: np.random.Generator, width: int, height: int, size: tuple[int, int]) -> tuple[Any, ...]:
    """A box of the image, or a window of the whole image resized."""
    wide, high = size
    if draw.random() < 0.3:
        resized = wide + int(draw.integers(0, 40)), high + int(draw.integers(0, 40))
        origin = int(draw.integers(0, resized[0] - wide + 1)), int(draw.integers(0, resized[1] - high + 1))
        return (0, 0, width, height), resized, origin, bool(draw.random() < 0.5)
    left, top = int(draw.integers(0, width)), int(draw.integers(0, height))
    box = left, top, int(draw.integers(left + 1, width + 1)), int(draw.integers(top + 1, height + 1))
    return box, (wide, high), (0, 0), bool(draw.random() < 0.5)


def marks_for(draw: np.random.Generator, good: bytes, bad: bytes) -> bytes | None:
    """The right ones, those of the damaged file, or damaged ones."""
    try:
        marks: bytes | None = _native.marks(good if draw.random() < 0.5 else bad)
    except ValueError:
        return None
    if marks and draw.random() < 0.5:
        changed = bytearray(marks)
        for _ in range(int(draw.integers(1, 5))):
            changed[int(draw.integers(0, len(changed)))] = int(draw.integers(0, 256))
        return bytes(changed)
    return marks


def main() -> None:
    cases = int(sys.argv[1])
    draw = np.random.default_rng(0)
    good = seeds(draw)
    outcomes: Counter[str] = Counter()
    for case in range(cases):
        data, width, height = good[int(draw.integers(0, len(good)))]
        bad = mutated(draw, data, good[int(draw.integers(0, len(good)))][0])
        sizes = [SIZES[int(number)] for number in draw.integers(0, len(SIZES), int(draw.choice([1, 1, 2])))]
        outs: list[Any] = []
        cuts: tuple[Any, ...] = ()
        for size in sizes:
            count = int(draw.choice([1, 1, 1, 2, 4]))
            cuts += tuple(cut(draw, width, height, size) for _ in range(count))
            outs.append(np.empty((count, 3, size[1], size[0]), np.uint8))
        out = outs[0]
        _native.vectors(int(draw.integers(0, 3)))
        marks = marks_for(draw, data, bad) if draw.random() < 0.7 else None
        try:
            whole = (width, height) if case % 2 else ()
            read = _native.view_jpeg(bad, marks, tuple(outs), cuts, int(draw.integers(0, 2)), True, *whole)
            outcomes["pictures" if read else "left to Pillow"] += 1
        except ValueError:
            outcomes["refused"] += 1
        if case % 10 == 0:  # pixels and planes, whose sizes are all that can be wrong
            half = (width + 1) // 2 * ((height + 1) // 2)
            pixels = draw.integers(0, 256, width * height * 3, dtype=np.uint8).tobytes()
            planes = pixels[: width * height] + pixels[: 2 * half] if len(pixels) >= 2 * half else b""
            _native.view_pixels(pixels, width, height, 3, out[0], *cuts[0], 1, True)
            _native.view_planar(planes, width, height, out[0], *cuts[0], 1, bool(case % 20))
    print(f"{cases:,} cases without a finding:", ", ".join(f"{count:,} {what}" for what, count in outcomes.items()))


if __name__ == "__main__":
    main()
