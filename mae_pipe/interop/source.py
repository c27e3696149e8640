"""A file or folder of weights from elsewhere: its tensors, and what stands beside them."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mae_pipe.errors import DataError
from mae_pipe.foreign_files import read_foreign

INDEX = "model.safetensors.index.json"
WHOLE = ("model.safetensors", "pytorch_model.bin")
INSIDE = ("teacher", "model", "state_dict", "module", "weights")  # where checkpoints keep the state dict, in order


@dataclass(frozen=True)
class Source:
    """What was read.

    Attributes:
        weights: the state dict as it is named there.
        config: config.json beside it, as Hugging Face and timm write it; empty if there is none.
        processor: preprocessor_config.json beside it, likewise.
        arguments: what an ``argparse.Namespace`` in the checkpoint says of its training.
        under: the keys under which the state dict lay, such as "model".
        left_out: what else the checkpoint holds.
        sha256: of every file that was read.
    """

    path: Path
    weights: dict[str, Tensor]
    config: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    under: str = ""
    left_out: tuple[str, ...] = ()
    sha256: Mapping[str, str] = field(default_factory=dict)


def read(path: Path) -> Source:
    """Read a file, or a folder as Hugging Face and timm keep one.

    Raises:
        DataError: there is nothing there, it is damaged, or it holds more than tensors and plain values.
    """
    files = _files(path)
    tree: Any = read_foreign(files[0], [argparse.Namespace])
    for file in files[1:]:
        tree |= read_foreign(file)
    folder = files[0].parent
    beside = [folder / name for name in ("config.json", "preprocessor_config.json")]
    under: list[str] = []
    left_out: list[str] = []
    arguments: dict[str, Any] = {}
    while isinstance(tree, dict) and not all(isinstance(value, Tensor) for value in tree.values()):
        key = next((key for key in INSIDE if isinstance(tree.get(key), dict)), None)
        if key is None:
            break
        left_out += [str(name) for name in tree if name != key]
        if isinstance(tree.get("args"), argparse.Namespace):
            arguments = dict(vars(tree["args"]))
        under.append(key)
        tree = tree[key]
    if not isinstance(tree, dict) or not tree or not all(isinstance(value, Tensor) for value in tree.values()):
        raise DataError(f"{path} holds no dictionary of tensors; give a state dict, or a checkpoint with one")
    weights = {str(name): tensor for name, tensor in tree.items()}
    if all(name.startswith("module.") for name in weights):  # DistributedDataParallel's
        weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    return Source(
        path,
        weights,
        config=_json(beside[0]),
        processor=_json(beside[1]),
        arguments=arguments,
        under=".".join(under),
        left_out=tuple(left_out),
        sha256={file.name: _sha256(file) for file in [*files, *(file for file in beside if file.is_file())]},
    )


def _files(path: Path) -> list[Path]:
    """The files that hold the weights."""
    if not path.is_dir() and path.name != INDEX:
        return [path]
    index = path / INDEX if path.is_dir() else path
    if index.is_file():
        try:
            named = sorted({Path(name) for name in _json(index)["weight_map"].values()})
        except (KeyError, AttributeError, TypeError) as error:
            raise DataError(f"{index} is damaged: it has no weight_map; get it again") from error
        if not named or any(name.name != str(name) or name.suffix != ".safetensors" for name in named):
            raise DataError(f"{index} names files that are not .safetensors files beside it; get it again")
        return [index.parent / name for name in named]
    found = next((path / name for name in WHOLE if (path / name).is_file()), None)
    if found is None:
        raise DataError(f"{path} holds none of {INDEX}, {', '.join(WHOLE)}; give such a folder, or a file")
    return [found]


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}); get it again, or move it away") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} holds no JSON object; get it again, or move it away")
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
