"""Good inputs of every kind that is read, and the damaged one of each case, for fuzz_readers.py."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
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
from tools.fuzz_damage import damaged, damaged_beton, damaged_index, damaged_json, damaged_list, damaged_tar

FOLDERS = ("tars", "planes", "lists", "maps", "listed", "indexed", "betons")
ARCHIVES = ("tar", "folder.tar", "zip", "stored.zip", "beton", "bytes.beton")
KINDS = ("tar", "zip", "beton", "tar", "beton", "manifest", "index", "index", "marks", "files")


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
