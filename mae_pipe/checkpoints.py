"""A checkpoint's folder: written in two phases, checked before it is read, read on any number of ranks.

    step-0001000/
      manifest.json                          what it is of, sha256 and size of every file, and of itself
      rank-00000-of-00002.safetensors        the pieces that a rank held (``engine/state.py``)

Nothing in it is a program or could be run: safetensors and JSON only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from torch import Tensor

from mae_pipe.disk import sync_folder, write_whole, writing
from mae_pipe.engine.state import WEIGHT, WHOLE, Piece
from mae_pipe.errors import RunError
from mae_pipe.stretches import Stretches
from mae_pipe.weights import Entry, entry_of, write_safetensors

MANIFEST = "manifest.json"
FORM = 2  # 1 were DeepSpeed's own files
STEP = "step-{:07d}"


@dataclass(frozen=True)
class Record:
    """What a manifest says.

    Attributes:
        step, world, zero, precision: of the run when it was written.
        numbers, tensors: ``Held.numbers`` and ``Held.shapes``.
        files: name -> (sha256, bytes).
    """

    step: int
    world: int
    zero: int
    precision: str
    numbers: dict[str, Any]
    tensors: dict[str, tuple[str, list[int]]]
    files: dict[str, tuple[str, int]]

    def to_json(self) -> bytes:
        """The manifest, which carries its own sha256."""
        said = {"form": FORM, **asdict(self)}
        return (json.dumps({**said, "seal": _seal(said)}, indent=1) + "\n").encode()


def drafts(checkpoints: Path) -> Iterator[Path]:
    """Folders of saves that did not come to an end."""
    return checkpoints.glob(".step-*.tmp")


def draft(checkpoints: Path, step: int) -> Path:
    """Where a step's files are written before they are a checkpoint."""
    return checkpoints / f".{STEP.format(step)}.tmp"


def write_part(folder: Path, rank: int, world: int, pieces: dict[Piece, Tensor]) -> None:
    """Write and sync one rank's pieces, and beside them what the manifest will say of the file.

    That slip's rename is the last that a rank does in the folder: once all slips are there, rank 0 renames the folder.
    """
    name = f"rank-{rank:05d}-of-{world:05d}.safetensors"
    with writing(folder):
        with (folder / name).open("wb") as file:
            entries = (entry_of(f"{p.kind}/{p.name}@{p.start}", tensor) for p, tensor in pieces.items())
            digest = write_safetensors(file, entries, {})
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        slip = _slip(folder, rank)
        new = slip.with_name(f".{slip.name}.tmp")
        new.write_text(json.dumps({name: [digest, size]}))
        sync_folder(folder)
        new.replace(slip)


def refuse_part(folder: Path, rank: int) -> None:
    """Say to rank 0 that this rank could not write, in a file without content, for which a full disk has room."""
    for torn in folder.glob(f"rank-{rank:05d}-of-*"):
        torn.unlink(missing_ok=True)
    _refusal(folder, rank).touch()


def parts(folder: Path, world: int) -> tuple[dict[str, Any], list[int]] | None:
    """What all ranks have written, and which could not; None: some are still writing."""
    found: dict[str, Any] = {}
    refused: list[int] = []
    for rank in range(world):
        if _refusal(folder, rank).exists():
            refused.append(rank)
        elif (slip := _slip(folder, rank)).is_file():
            found |= json.loads(slip.read_text())
        else:
            return None
    return found, refused


def commit(checkpoints: Path, record: Record) -> Path:
    """Make a draft whose files are all written a checkpoint. The rename is what counts."""
    new, final = draft(checkpoints, record.step), checkpoints / STEP.format(record.step)
    with writing(checkpoints):
        for slip in new.glob("*.slip.json"):
            slip.unlink()
        write_whole(new / MANIFEST, record.to_json())
        if final.exists():  # damaged, or of a run that went on from before it: renamed first, as deleting takes time
            old = final.with_name(f".{final.name}.old.tmp")
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
            new.rename(final)
            shutil.rmtree(old, ignore_errors=True)
        else:
            new.rename(final)
        sync_folder(checkpoints)
    return final


def prune(checkpoints: Path, *, keep_last: int, keep_every: int | None) -> None:
    """Delete all but the newest ``keep_last`` and those of every ``keep_every`` steps."""
    for old in sorted(checkpoints.glob("step-*"), reverse=True)[keep_last:]:
        if not keep_every or int(old.name.removeprefix("step-")) % keep_every:
            shutil.rmtree(old)


def check(checkpoint: Path) -> Record:
    """A checkpoint's record, after every file in it was compared with its sha256."""
    record = read_record(checkpoint)
    others = {path.name for path in checkpoint.iterdir()} - {MANIFEST, *record.files}
    if others:
        raise RunError(
            f"the checkpoint {checkpoint} is damaged: {min(others)} is none of its files; delete that file if you "
            "put it there, or take another checkpoint"
        )
    for name, (digest, size) in record.files.items():
        path = checkpoint / name
        if path.is_symlink() or not path.is_file():
            raise RunError(f"the checkpoint {checkpoint} is damaged: {name} is missing")
        if path.stat().st_size != size or _hash(path) != digest:
            raise RunError(f"the checkpoint {checkpoint} is damaged: {name} does not have its sha256")
    return record


def read_record(checkpoint: Path) -> Record:
    """What a checkpoint's manifest says."""
    path = checkpoint / MANIFEST
    if not path.is_file():
        raise RunError(
            f"{checkpoint} is no checkpoint (it has no {MANIFEST}); give a folder such as RUN/checkpoints/step-0001000"
        )
    try:
        said = json.loads(path.read_text())
        if "form" not in said and "zero" in said:
            raise RunError(
                f"the checkpoint {checkpoint} was written by an earlier mae-pipe, in files that can hold programs, "
                "and is not read; go on with the version that wrote it, or begin anew from its encoder.safetensors"
            )
        if said.pop("form") == FORM and said.pop("seal") == _seal({"form": FORM, **said}):
            record = TypeAdapter(Record).validate_python(vars(Record(**said)))
            if all(Path(name).name == name for name in record.files):
                return record
    except (ValueError, AttributeError, KeyError, TypeError):
        pass
    raise RunError(f"the checkpoint {checkpoint} is damaged: its {MANIFEST} is not what was written")


class Archive:
    """The pieces of all ranks of a checkpoint."""

    def __init__(self, checkpoint: Path, record: Record) -> None:
        self.checkpoint, self.record = checkpoint, record
        self._where: dict[tuple[str, str], list[tuple[int, int, Stretches, str]]] = {}
        try:
            for name in record.files:
                file = Stretches(checkpoint / name)
                for key in file.shapes:
                    kind, _, rest = key.partition("/")
                    named, _, start = rest.rpartition("@")
                    self._where.setdefault((kind, named), []).append((int(start), file.numel(key), file, key))
        except (SafetensorError, OSError, ValueError) as error:
            raise RunError(f"the checkpoint {checkpoint} is damaged: {error}") from error

    @classmethod
    def of(cls, checkpoint: Path) -> Archive:
        """The pieces of a checkpoint that was checked."""
        return cls(checkpoint, read_record(checkpoint))

    @property
    def kinds(self) -> set[str]:
        """The kinds of pieces that there are."""
        return {kind for kind, _ in self._where}

    @property
    def names(self) -> set[tuple[str, str]]:
        """(kind, name) of all that there is."""
        return set(self._where)

    def whole(self, kind: str, name: str) -> Tensor:
        """All numbers of a kind of a parameter, flat."""
        pieces = self._pieces(kind, name)
        return torch.cat([file.read(key) for _, _, file, key in pieces])

    def read(self, piece: Piece, numel: int) -> Tensor:
        """A stretch, flat, whichever ranks' pieces it lies in."""
        found: Tensor | None = None
        missing = numel
        for start, length, file, key in self._where.get((piece.kind, piece.name), []):
            begin, end = max(start, piece.start), min(start + length, piece.start + numel)
            if begin < end or (length == numel == 0):
                part = file.read(key, begin - start, end - start)
                if len(part) == numel:
                    return part
                found = torch.empty(numel, dtype=part.dtype) if found is None else found
                found[begin - piece.start : end - piece.start] = part
                missing -= end - begin
        if missing or found is None:
            raise self._another(f"{piece.kind} of {piece.name} from {piece.start} on, {numel} numbers")
        return found

    def _pieces(self, kind: str, name: str) -> list[tuple[int, int, Stretches, str]]:
        if (kind, name) not in self._where:
            raise self._another(f"{kind} of {name}")
        return sorted(self._where[kind, name], key=lambda one: one[0])

    def _another(self, lacks: str) -> RunError:
        return RunError(
            f"the checkpoint {self.checkpoint} is of another model: it has no {lacks}; give the recipe that it was "
            "written with"
        )

    def entries(self, trained: str = WEIGHT) -> list[Entry]:
        """The model's state dict, to be written piece by piece: float32 where trained.

        Args:
            trained: the kind that is given of what is trained, which may be the average.
        """
        found = []
        for name, (kind, shape) in self.record.tensors.items():
            pieces = self._pieces(trained if kind == WEIGHT else kind, name)
            dtype = torch.float32 if kind == WEIGHT else pieces[0][2].dtypes[pieces[0][3]]
            if kind == WHOLE and dtype in (torch.bfloat16, torch.float16):
                dtype = torch.float32

            def read(pieces: Iterable[tuple[int, int, Stretches, str]] = pieces) -> Iterator[Tensor]:
                return (file.read(key) for _, _, file, key in pieces)

            found.append(Entry(name, dtype, tuple(shape), read))
        return found

    def weights(self) -> dict[str, Tensor]:
        """The same in memory."""
        kinds = {name: kind for name, (kind, _) in self.record.tensors.items()}
        return {e.name: self.whole(kinds[e.name], e.name).to(e.dtype).reshape(e.shape) for e in self.entries()}


def _slip(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.slip.json"


def _refusal(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.refused"


def _seal(said: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
