"""The record of a finished part of a build: what is in its shard file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_pipe.data.admit import Sums
from mae_pipe.data.index import SampleIndex
from mae_pipe.data.manifest import Refused, Shard

FOLDER = ".parts"


@dataclass(frozen=True)
class Part:
    """What a part holds; ``file`` is None where every image was refused.

    Attributes:
        sides: sums of widths and heights.
        top: the highest class in any map; -1: none.
        read: bytes of the source files.
        far: the sum of ``fidelity.error`` of the images that were compared, and their number.
        rows: with shard 0 throughout.
        fingerprint: of the files and options that it was made of.
    """

    file: Shard | None
    sums: Sums
    sides: tuple[int, int]
    top: int
    converted: dict[str, int]
    read: int
    far: tuple[float, int]
    refused: list[Refused]
    rows: SampleIndex
    fingerprint: str


def record_path(out: Path, name: str) -> Path:
    return out / FOLDER / f"{name}.safetensors"


def marks_path(out: Path, name: str) -> Path:
    return out / FOLDER / f"{name}.marks"


def save(path: Path, part: Part) -> None:
    """Write a record."""
    about = {
        "fingerprint": part.fingerprint,
        "file": part.file.model_dump() if part.file else None,
        "sums": part.sums,
        "sides": part.sides,
        "top": part.top,
        "converted": part.converted,
        "read": part.read,
        "far": part.far,
        "refused": [(entry.path, entry.reason) for entry in part.refused],
    }
    part.rows.save(path, {"part": json.dumps(about)})


def load(out: Path, name: str) -> Part:
    """Read the record of a part."""
    from safetensors import safe_open

    with safe_open(record_path(out, name), framework="np") as file:
        about: dict[str, Any] = json.loads(file.metadata()["part"])
        rows = SampleIndex(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (not a mapping)
    pixels, values, squares = about["sums"]
    return Part(
        file=Shard(**about["file"]) if about["file"] else None,
        sums=Sums(pixels, tuple(values), tuple(squares)),
        sides=tuple(about["sides"]),
        top=about["top"],
        converted=about["converted"],
        read=about["read"],
        far=tuple(about["far"]),
        refused=[Refused(path=path, reason=reason) for path, reason in about["refused"]],
        rows=rows,
        fingerprint=about["fingerprint"],
    )
