"""A folder of features, read: every file checked against its hash when it is first used, then mapped, not read."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae_pipe.errors import RunError
from mae_pipe.features.identity import Identity, Manifest, Shard

TYPES: dict[str, Any] = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "U8": "u1"}
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Features:
    """The features of one split, in the order of its shards; only of format safetensors.

    A file of it holds ``features`` [n, D], [n, K, D] of K views, or [n, ..., T + N, D] of all tokens; ``labels``, [n]
    int64 (-1: none) or [n, C] uint8 of several classes; and the keys, one after the other in ``key_bytes``, which end
    at ``key_ends``.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path, expected: Identity | None = None) -> Features:
        """Raises RunError where there are none, or others than ``expected``."""
        manifest = Manifest.load(folder)
        if expected is not None and manifest.identity != expected:
            raise RunError(
                f"{folder} holds other features than these (they differ in "
                f"{expected.differences(manifest.identity)}); choose another folder, or delete it"
            )
        if manifest.identity.format != "safetensors":
            raise RunError(
                f"{folder} holds features as {manifest.identity.format}, which is for other programs to read"
            )
        return cls(folder, manifest)

    def __len__(self) -> int:
        return self.manifest.count

    @cached_property
    def files(self) -> list[Columns]:
        """The columns of every file, checked and mapped."""
        return [self._checked(shard) for shard in self.manifest.shards]

    @cached_property
    def labels(self) -> Tensor:
        """[n] int64, or [n, C] float32 of 0 and 1."""
        labels = torch.from_numpy(np.concatenate([file["labels"] for file in self.files]))
        return labels if labels.dim() == 1 else labels.float()

    @cached_property
    def keys(self) -> list[str]:
        """[n] keys of the images."""
        found = []
        for file in self.files:
            data, starts = file["key_bytes"].tobytes(), [0, *file["key_ends"].tolist()]
            found += [data[a:b].decode("utf-8", "backslashreplace") for a, b in itertools.pairwise(starts)]
        return found

    def take(self, rows: NDArray[np.int64], views: NDArray[np.int64] | None = None) -> Tensor:
        """The features of some images, [B, ...] float32; ``views`` of each, where there are several."""
        per, first = self.manifest.identity.per_shard, self.files[0]["features"]
        lone = self.manifest.identity.views == 0
        out = np.empty((len(rows), *first.shape[1 if lone else 2 :]), first.dtype)
        which, inside = np.divmod(rows, per)
        for number in np.unique(which):
            here, file = which == number, self.files[number]["features"]
            out[here] = file[inside[here]] if lone or views is None else file[inside[here], views[here]]
        return torch.from_numpy(out).float()

    def whole(self) -> Tensor:
        """All of them in memory, [n, ...] float32."""
        return torch.cat([torch.tensor(file["features"]).float() for file in self.files])

    def _checked(self, shard: Shard) -> Columns:
        path = self.folder / shard.name
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise RunError(
                f"{path} cannot be read ({error.strerror}); delete {self.folder}, and make it again"
            ) from error
        if found != shard.sha256:
            raise RunError(
                f"{path} is damaged: it has not the sha256 of its manifest; delete {self.folder}, and make it again"
            )
        return mapped(path)


def mapped(path: Path) -> Columns:
    """The tensors of a safetensors file of known kinds, mapped."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: _column(path, 8 + length, about) for name, about in header.items()}


def _column(path: Path, start: int, about: dict[str, Any]) -> NDArray[Any]:
    shape, dtype = tuple(about["shape"]), np.dtype(TYPES[about["dtype"]])
    if 0 in shape:
        return np.zeros(shape, dtype)
    found: NDArray[Any] = np.memmap(path, dtype, "r", start + about["data_offsets"][0], shape)
    return found
