"""Good inputs of every kind that is read, and damage to them: what fuzz_readers.py feeds to the readers."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mae_pipe.catalog import Catalog
from mae_pipe.indexing import index
from mae_pipe.sharding import build
from tests.workers.plain_beton import plain_beton

Draw = np.random.Generator
FOLDERS = ("tars", "planes", "lists", "maps", "listed", "indexed", "betons")
ARCHIVES = ("tar", "folder.tar", "zip", "stored.zip", "beton", "bytes.beton")
KINDS = ("tar", "zip", "beton", "tar", "beton", "manifest", "index", "index", "marks", "files")
NUMBERS = (0, 1, 2, 7, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
VALUES: tuple[Any, ...] = (
    *(0, -1, 1, 2**31, 2**40, 2**63, -(2**63) - 1, 10**400, 1.5, float("nan"), float("inf"), True, None, "", "x" * 5000),
    *("..", "../x", "/etc/passwd", "a\0b", "\ud800", "0", "1e9", [], {}, [[]], [None], {"a": 1}, ["x"], [-1], "train"),
    *("http://127.0.0.1:9/x", "/dev/zero", "/proc/self/mem", "/", ".", "train.index.safetensors", "manifest.json"),
)


def photo(number: int, kind: str = "JPEG") -> bytes:
    draw, out = np.random.default_rng(number), io.BytesIO()
    small = Image.fromarray(draw.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    small.resize((20 + number % 9, 17 + number % 5)).save(out, kind)
    return out.getvalue()


def tar_of(files: dict[str, bytes], format: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def good(folder: Path) -> None:
    """Make all good inputs in a folder."""
    catalog, images = Catalog(), folder / "images"
    for number in range(7):
        path = images / ("cat" if number % 2 else "dog") / f"{number}.{'png' if number == 4 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(number, "PNG" if number == 4 else "JPEG"))
        map_ = folder / "pictures" / path.relative_to(images).with_suffix(".png")
        map_.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", Image.open(path).size, number % 3).save(map_)
    lines = "".join(f"{path.relative_to(images)},cat;dog\n" for path in sorted(images.rglob("*.*")))
    (folder / "labels.csv").write_text("path,labels\n" + lines)
    how: dict[str, Any] = {"catalog": catalog, "workers": 1, "per_shard": 3}
    build(images, folder / "tars", **how)
    build(images, folder / "planes", planes=True, **how)
    build(images, folder / "lists", labels=folder / "labels.csv", **how)
    build(images, folder / "maps", maps=folder / "pictures", **how)
    build(images, folder / "listed", format="files", **how)
    files: dict[str, bytes] = {}
    for number in range(4):
        name = f"{'long' * 40 * (number == 2)}a/{number:03d}"
        files |= {f"{name}.jpg": photo(number), f"{name}.cls": b"%d" % number, f"{name}.json": b'{"label": 1}'}
    (folder / "x.tar").write_bytes(tar_of(files, tarfile.PAX_FORMAT))
    classes = {f"train/{n % 2}/{n}{'x' * 120 * (n == 1)}.jpg": photo(n) for n in range(4)}
    (folder / "x.folder.tar").write_bytes(tar_of(classes, tarfile.GNU_FORMAT))
    for name, how_ in (("x.zip", zipfile.ZIP_DEFLATED), ("x.stored.zip", zipfile.ZIP_STORED)):
        with zipfile.ZipFile(folder / name, "w", how_) as made:
            for path_, data in classes.items():
                made.writestr(path_, data)
    pixels = np.random.default_rng(0).integers(0, 256, 18 * 21 * 3, dtype=np.uint8).tobytes()
    pictures = [(0, *Image.open(io.BytesIO(photo(n))).size, photo(n)) for n in range(4)] + [(1, 21, 18, pixels)]
    said = [json.dumps({"labels": [0, number % 2]}).encode() + b"\0" for number in range(5)]
    several = [(*pair, 1, 0.5) for pair in zip(pictures, said, strict=True)]
    fields = [("image", 2), ("labels", 5), ("label", 1), ("score", 0)]
    (folder / "x.beton").write_bytes(plain_beton(fields, several))
    kept = [(photo(number), number) for number in range(5)]
    (folder / "x.bytes.beton").write_bytes(plain_beton([("image", 3), ("label", 1)], kept))
    for name, path in (("indexed", folder / "x.tar"), ("betons", folder / "x.beton")):
        inside = folder / f"in-{name}" / path.name
        inside.parent.mkdir()
        shutil.copy(path, inside)
        index([str(inside)], folder / name, catalog=catalog, workers=1)


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
        start, width = [(0, 100), (124, 12), (124, 12), (156, 1), (257, 8), (345, 155), (157, 100)][int(draw.integers(0, 7))]
        texts = [b"0" * 11, b"7" * 11, b"00000000100", b"\x80" + b"\0" * 10 + b"\x01", b"\xff" * 12, b"\x80\x7f" + b"\xff" * 10]
        texts += [b"", b"../../x.jpg", b"/x.jpg", b".", b"a/.jpg", b"x/1.jpg/", b"\xff\xfe.jpg", b"L", b"K", b"x", b"g", b"S", b"5"]
        text = texts[int(draw.integers(0, len(texts)))]
        made[at + start : at + start + width] = text[:width].ljust(width, b"\0")
        made[at + 148 : at + 156] = b" " * 8
        made[at + 148 : at + 156] = b"%06o\0 " % sum(made[at : at + 512])
    if draw.random() < 0.2:
        at = blocks[int(draw.integers(0, len(blocks)))] + 512
        made[at : at + 40] = [b"30 size=99999999999999999999\n\0", b"99999999 path=x\n", b"9 size=-1\n", b"11 path=\0\n\0"][
            int(draw.integers(0, 4))
        ].ljust(40, b"\0")
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
        texts = [b"[" * 200_000, b'{"a":' * 100_000, b"9" * 100_000, b'"' + b"\\u0000" * 50, b"", b"null", b"\xef\xbb\xbf{}"]
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


def make(case: int, seed: int, source: Path, out: Path) -> str:
    """Write the input of a case into ``out``; returns its kind."""
    draw = np.random.default_rng([seed, case])
    kind = KINDS[case % len(KINDS)]
    if kind in ("tar", "zip", "beton"):
        names = [name for name in ARCHIVES if name.endswith(kind)]
        name = names[int(draw.integers(0, len(names)))]
        data = (source / f"x.{name}").read_bytes()
        other = (source / f"x.{names[int(draw.integers(0, len(names)))]}").read_bytes()
        by = {"tar": damaged_tar, "beton": damaged_beton}.get(kind, damaged)
        (out / f"x.{kind}").write_bytes(by(draw, data, other))
        return kind
    folder = "listed" if kind == "files" else FOLDERS[int(draw.integers(0, len(FOLDERS)))]
    if kind == "marks" and folder == "planes":
        folder = "tars"
    shutil.copytree(source / folder, out / "shards", copy_function=os.link)
    suffix = {"manifest": "manifest.json", "index": ".index.safetensors", "marks": ".marks", "files": ".files"}[kind]
    paths = sorted(path for path in (out / "shards").iterdir() if path.name.endswith(suffix))
    path = paths[int(draw.integers(0, len(paths)))]
    by = {"manifest": damaged_json, "index": damaged_index, "files": damaged_list}.get(kind, damaged)
    made = by(draw, path.read_bytes(), paths[0].read_bytes())
    _replace(path, made)
    if kind != "manifest":  # with the right hash, as if a stranger had made it so
        about = out / "shards" / "manifest.json"
        known = json.loads(about.read_bytes())
        for split in known["splits"].values():
            for part in [*split["shards"], split["index"], split["marks"]]:
                if part and part["name"] == path.name:
                    part["bytes"], part["sha256"] = len(made), hashlib.sha256(made).hexdigest()
        _replace(about, json.dumps(known).encode())
    return kind


def _replace(path: Path, data: bytes) -> None:
    """Not through the link to the good one."""
    path.unlink()
    path.write_bytes(data)
