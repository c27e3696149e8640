"""Shards from elsewhere, kept on this machine: by content, up to a size, for any number of processes.

A file is named by its sha256, so no two data sets can be taken for each other, and equal shards are kept once. It has
its name only when all of it came and has that hash. Locks are flocks, which end with their process: whoever reads a
file holds a shared one, whoever fetches it, or wants to make room, an exclusive one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mae_pipe.data.address import Address
from mae_pipe.data.fetch import Abandoned, Unreachable, fetch
from mae_pipe.data.manifest import Shard
from mae_pipe.errors import DataError, DiskError
from mae_pipe.wording import size_of

FOLDER = "MAE_PIPE_CACHE"
SIZE = "MAE_PIPE_CACHE_SIZE"
DEFAULT = 50 * 10**9  # bytes
LEFT = 0.1  # of the disk, which the cache never takes
PATIENT = 60.0  # seconds to wait for others to let go of what they read
COPIES = 3  # times that a shard is fetched whole, if what came is another one
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def home() -> Path:
    """The folder of everything that is fetched or indexed once, of this user."""
    chosen, shared = os.environ.get(FOLDER), os.environ.get("XDG_CACHE_HOME")
    return Path(chosen) if chosen else (Path(shared) if shared else Path.home() / ".cache") / "mae-pipe"


@dataclass
class Held:
    """A cached file that nobody removes until it is closed."""

    path: Path
    _descriptor: int

    def close(self) -> None:
        """Let go of it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Cache:
    """A folder of shard files.

    Args:
        folder: on a disk of this machine, as it is shared by its processes.
        size: bytes that all files together may take; default: what ``MAE_PIPE_CACHE_SIZE`` says, or 50 GB, and never
            the last tenth of the disk.
    """

    def __init__(self, folder: Path | None = None, size: int | None = None) -> None:
        self.folder = folder or home() / "shards"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        self.size = _size(self.folder) if size is None else size

    def hold(self, part: Shard, address: Address, stop: threading.Event) -> Held:
        """The file of a shard, fetched if it is not there; ``stop`` ends it, with ``Abandoned``.

        Raises:
            Unreachable: it cannot be fetched, or other bytes come than the manifest says, or there is no room.
        """
        path = self.path(part)
        while True:
            held = _held(path, part.bytes)
            if held:
                return held
            with self._draft(path, stop) as draft:
                if draft is not None and not path.exists():
                    return self._fetched(part, address, path, draft, stop)
                if draft is not None:
                    _name_of_draft(path).unlink(missing_ok=True)

    def path(self, part: Shard) -> Path:
        """Where it is, or will be."""
        return self.folder / (part.sha256 + "".join(PurePosixPath(part.name).suffixes[-1:]))

    def adopt(self, part: Shard, file: Path) -> None:
        """Take a whole file of that content, where there is room for it without anything else going."""
        held = sum(size for _, _, size in _entries(self.folder))
        if held + part.bytes > self.size or self.path(part).exists():
            return
        with contextlib.suppress(OSError):  # from another disk, say: then it is fetched when it is needed
            file.rename(self.path(part))

    def drop(self, part: Shard) -> None:
        """Forget a file that turned out to be damaged; who reads it goes on with what he has."""
        self.path(part).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _draft(self, path: Path, stop: threading.Event) -> Iterator[int | None]:
        """A file to fetch into, which no other process has meanwhile; None: try anew."""
        new = _name_of_draft(path)
        try:
            descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        try:
            while not _locked(descriptor, fcntl.LOCK_EX):
                if stop.wait(0.1):
                    raise Abandoned
            yield descriptor if _is_at(new, descriptor) else None
        finally:
            os.close(descriptor)

    def _fetched(self, part: Shard, address: Address, path: Path, draft: int, stop: threading.Event) -> Held:
        new = _name_of_draft(path)
        try:
            for copy in range(COPIES):
                self._make_room(part, draft, stop)
                os.lseek(draft, 0, os.SEEK_SET)
                came = fetch(address, lambda piece: _write(draft, piece), size=part.bytes, limit=part.bytes, stop=stop)
                if came.sha256 == part.sha256:
                    new.rename(path)
                    held = _held(path, part.bytes, own=draft)
                    assert held is not None
                    return held
                if copy == COPIES - 1:
                    raise Unreachable(
                        f"{address} is not the shard that its manifest names: {part.bytes:,} bytes came {COPIES} "
                        f"times, with the sha256 {came.sha256[:16]}... instead of {part.sha256[:16]}...; copy it there "
                        "again, or index the shards again"
                    )
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        finally:
            if not path.exists():
                new.unlink(missing_ok=True)
        raise AssertionError("never here")

    def _make_room(self, part: Shard, draft: int, stop: threading.Event) -> None:
        """Take bytes for a draft, from files that nobody reads, the longest unused first."""
        if part.bytes > self.size:
            raise self._too_small(f"{part.name} alone has {size_of(part.bytes)}")
        waited = 0.0
        while True:
            with self._alone(stop):
                os.ftruncate(draft, 0)
                entries = sorted(_entries(self.folder), key=lambda entry: entry[1])
                taken = sum(size for _, _, size in entries)
                for name, _, size in entries:
                    if taken + part.bytes <= self.size and shutil.disk_usage(self.folder).free > part.bytes:
                        break
                    taken -= size if _removed(self.folder / name) else 0
                if taken + part.bytes <= self.size:
                    os.ftruncate(draft, part.bytes)  # so that others count it
                    return
            if waited > PATIENT:
                raise self._too_small(
                    f"all {size_of(taken)} in it are being read and {size_of(part.bytes)} more are needed"
                )
            if stop.wait(0.5):
                raise Abandoned
            waited += 0.5

    def _too_small(self, why: str) -> Unreachable:
        return Unreachable(
            f"the cache {self.folder} may take {size_of(self.size)}, which is too little: {why}; set {SIZE}, such as "
            f"{SIZE}=100GB, or a smaller data.window"
        )

    @contextlib.contextmanager
    def _alone(self, stop: threading.Event) -> Iterator[None]:
        """Only one process at a time counts and removes."""
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            while not _locked(descriptor, fcntl.LOCK_EX):
                if stop.wait(0.02):
                    raise Abandoned
            yield
        finally:
            os.close(descriptor)


def _held(path: Path, size: int, *, own: int | None = None) -> Held | None:
    """A whole file, with a shared lock on it; ``own``: by the descriptor that wrote it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if own is None else os.dup(own)
    except FileNotFoundError:
        return None
    locked = _locked(descriptor, fcntl.LOCK_SH)
    if locked and os.fstat(descriptor).st_size != size and _is_at(path, descriptor):
        path.unlink(missing_ok=True)  # somebody has cut it
    if not locked or not _is_at(path, descriptor):
        os.close(descriptor)
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return Held(path, descriptor)


def _name_of_draft(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file still has that name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _entries(folder: Path) -> Iterator[tuple[str, float, int]]:
    """Name, time of the last use and bytes of each file."""
    with os.scandir(folder) as found:
        for entry in found:
            with contextlib.suppress(FileNotFoundError):
                about = entry.stat()
                if entry.name != "lock":
                    yield entry.name, about.st_mtime, about.st_size


def _removed(path: Path) -> bool:
    """Remove a file that nobody reads or writes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if not _locked(descriptor, fcntl.LOCK_EX) or not _is_at(path, descriptor):
            return False
        path.unlink()
        return True
    finally:
        os.close(descriptor)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _size(folder: Path) -> int:
    """What the user says, or else what the disk has room for."""
    text = os.environ.get(SIZE, "").strip()
    if not text:
        held = sum(size for _, _, size in _entries(folder))
        return min(DEFAULT, int((1 - LEFT) * (held + shutil.disk_usage(folder).free)))
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)B?", text.upper())
    if found is None:
        raise DataError(f"{SIZE} is {text!r}; expected a size such as 100GB")
    return int(float(found[1]) * _UNITS[found[2]])


def _unwritable(folder: Path, error: OSError) -> DiskError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskError(
            f"the disk of the cache {folder} is full; free some space, or set {FOLDER} to a folder on another disk, "
            "then give the same command again"
        )
    return DiskError(
        f"cannot write to the cache {folder} ({error.strerror or error}); set {FOLDER} to a folder of yours"
    )
