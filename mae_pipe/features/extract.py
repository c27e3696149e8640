"""Images -> a folder of features: by any number of processes, the same bytes; a build that was stopped goes on.

A file's images are always computed by one process, in the same batches, so it does not matter by which.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache, partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from mae_pipe import __version__, launch
from mae_pipe.data.batch import Batch
from mae_pipe.data.device import placed
from mae_pipe.data.layout import Numbers
from mae_pipe.data.stream import Plan, Stream
from mae_pipe.disk import write_whole, writing, writing_whole
from mae_pipe.errors import RecipeError, RunError
from mae_pipe.features.identity import NAME, VERSION, Identity, Kind, Manifest, Shard
from mae_pipe.runs import Run
from mae_pipe.weights import entry_of, write_safetensors

BATCH = 128  # images at once; part of what decides the last bits
LARGEST = 1024  # images in a file
ROOM = 64 << 20  # bytes of a file, about
BEGUN = "begun.json"  # what an unfinished folder is of
Progress = Callable[[int, int], None]


class Encoding(Protocol):
    """What gives tokens, and how many of them are class tokens."""

    def __call__(self, batch: Batch) -> Tensor: ...


def per_shard(row_bytes: int) -> int:
    """How many images of so many bytes a file holds."""
    return min(LARGEST, max(1, ROOM // row_bytes // BATCH) * BATCH)


def pooled(tokens: Tensor, kind: Kind, class_tokens: int) -> Tensor:
    """[B, T + N, D] tokens -> [B, D]; or as they are."""
    if kind == "tokens":
        return tokens
    return tokens[:, :class_tokens].mean(dim=1) if kind == "token" else tokens[:, class_tokens:].mean(dim=1)


def check_kind(kind: Kind, class_tokens: int) -> None:
    """Refuse the class token of an encoder that has none."""
    if kind == "token" and not class_tokens:
        raise RecipeError("the encoder has no class token; take the mean of its patch tokens")


def extract(
    folder: Path,
    identity: Identity,
    stream: Stream,
    tokens_of: Encoding,
    *,
    class_tokens: int,
    device: torch.device,
    progress: Progress = lambda done, total: None,
) -> Manifest:
    """The features of ``stream``'s split in ``folder``, computed where they are not there yet. All ranks call it.

    Args:
        stream: of micro-batches of ``BATCH`` images; random crops where ``identity.views``.
        tokens_of: [B, T + N, D] of a batch on ``device``.

    Raises:
        RunError: the folder holds other features, or another process is writing it.
    """
    here = launch.join()
    run = Run(folder, rank=here.rank)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    count = len(stream.index)

    def begin() -> list[int] | Manifest:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(f"another process is writing {folder}; wait for its end, then run this again") from None
        if (folder / NAME).is_file():
            lock.release()
            found = Manifest.load(folder)
            if found.identity != identity:
                raise RunError(_other(folder, identity, found.identity))
            return found
        return _left(folder, identity, count)

    left = run.on_rank_0(begin)
    if isinstance(left, Manifest):
        return left
    try:
        done = 0
        for number, features in _shards(
            left[here.rank :: here.world], identity, stream, tokens_of, class_tokens, device
        ):
            _write(folder, identity, stream, number, features)
            done += here.world
            progress(min(count, min(done, len(left)) * identity.per_shard), min(count, len(left) * identity.per_shard))
        launch.meet()
        return run.on_rank_0(lambda: _finish(folder, identity, count, stream))
    finally:
        lock.release()


def _other(folder: Path, wanted: Identity, found: Identity) -> str:
    return (
        f"{folder} holds other features than these (they differ in {wanted.differences(found)}); choose another "
        "folder, or delete it"
    )


def _left(folder: Path, identity: Identity, count: int) -> list[int]:
    """The numbers of the files that are still to be made."""
    begun, now = folder / BEGUN, identity.model_dump_json().encode()
    if begun.is_file():
        before = Identity.model_validate_json(begun.read_bytes())
        if before != identity:
            raise RunError(_other(folder, identity, before))
    elif any(path.suffix != ".tmp" for path in folder.iterdir()):
        raise RunError(f"{folder} is not empty and holds no features; choose another folder")
    else:
        write_whole(begun, now)
    return [n for n in range(math.ceil(count / identity.per_shard)) if not (folder / _name(identity, n)).is_file()]


def _name(identity: Identity, number: int) -> str:
    return f"features-{number:05d}.{identity.format}"


def _rows(identity: Identity, number: int, count: int) -> Numbers:
    """The rows of the index that a file holds."""
    return np.arange(number * identity.per_shard, min(count, (number + 1) * identity.per_shard))


def _shards(
    numbers: list[int],
    identity: Identity,
    stream: Stream,
    tokens_of: Encoding,
    class_tokens: int,
    device: torch.device,
) -> Iterator[tuple[int, Tensor]]:
    """Each file's number and features, [n, D], [n, K, D], or with all tokens in place of D."""
    count, views = len(stream.index), max(1, identity.views)
    places_of = cache(partial(_positions, stream))
    dtype = torch.float16 if identity.dtype == "float16" else torch.float32

    def plan() -> Plan:
        for number in numbers:
            rows = _rows(identity, number, count)
            for view in range(views):
                places = places_of(view)[rows] if identity.views else rows
                for at in range(0, len(rows), BATCH):
                    fill = (0, max(0, at + BATCH - len(rows)))
                    yield (
                        np.pad(rows[at : at + BATCH], fill, constant_values=-1),
                        np.pad(places[at : at + BATCH], fill),
                    )

    with torch.no_grad(), closing(stream.read(plan)) as batches:  # type: ignore[type-var]
        found = (
            (pooled(tokens_of(there), identity.kind, class_tokens).float(), here.numbers >= 0)
            for here, there in placed(batches, device)
        )
        for number in numbers:
            size = math.ceil(len(_rows(identity, number, count)) / BATCH)
            seen = [
                torch.cat([tokens.cpu()[real].to(dtype) for tokens, real in (next(found) for _ in range(size))])
                for _ in range(views)
            ]
            yield number, torch.stack(seen, dim=1) if identity.views else seen[0]


def _positions(stream: Stream, epoch: int) -> NDArray[np.int64]:
    """[n]: where each image stands in the stream in one epoch, which decides how it is cropped there."""
    first = epoch * stream.images
    images = stream.order.at(np.arange(first, first + stream.images))
    places = np.empty_like(images)
    places[images] = np.arange(first, first + stream.images)
    return places


def _labels(identity: Identity, stream: Stream, rows: Numbers) -> Tensor:
    """[n] int64, -1 where an image has none; or [n, C] uint8 of several classes."""
    if identity.labelling == "class":
        return torch.from_numpy(stream.index.label[rows].astype(np.int64))
    labels = torch.zeros(len(rows), len(identity.classes), dtype=torch.uint8)
    for place, row in enumerate(rows.tolist()):
        labels[place, torch.from_numpy(stream.index.labels(row).astype(np.int64))] = 1
    return labels


def _write(folder: Path, identity: Identity, stream: Stream, number: int, features: Tensor) -> None:
    rows = _rows(identity, number, len(stream.index))
    keys = [stream.index.key(row) for row in rows.tolist()]
    labels = _labels(identity, stream, rows)
    path = folder / _name(identity, number)
    if identity.format == "parquet":
        from mae_pipe.features.parquet import write_parquet

        return write_parquet(path, keys, labels, features, identity)
    encoded = [key.encode("utf-8", "backslashreplace") for key in keys]
    columns = {
        "features": features.contiguous(),
        "labels": labels,
        "key_ends": torch.from_numpy(np.cumsum([len(key) for key in encoded], dtype=np.int64)),
        "key_bytes": torch.from_numpy(np.frombuffer(bytearray(b"".join(encoded)), np.uint8)),
    }
    with writing_whole(path) as file:
        write_safetensors(file, map(entry_of, columns, columns.values()), {"of": identity.hash, "first": int(rows[0])})
    return None


def _finish(folder: Path, identity: Identity, count: int, stream: Stream) -> Manifest:
    """The manifest, which makes the folder whole."""
    shards = []
    for number in range(math.ceil(count / identity.per_shard)):
        path = folder / _name(identity, number)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        images = len(_rows(identity, number, count))
        shards.append(Shard(name=path.name, images=images, bytes=path.stat().st_size, sha256=digest))
    width = int(identity.shape["width"])
    made = Manifest(
        version=VERSION,
        created_by=f"mae-pipe {__version__}",
        count=count,
        width=width,
        identity=identity,
        shards=shards,
    )
    write_whole(folder / NAME, (json.dumps(made.model_dump(mode="json"), indent=1) + "\n").encode())
    (folder / BEGUN).unlink(missing_ok=True)
    return made
