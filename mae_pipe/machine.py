"""What the machine offers a run: memory, cores, disk and limits."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["ok", "warning", "broken"]
GIB = 2**30
SHARED = Path("/dev/shm")  # noqa: S108 (looked at, not written to)
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        trouble: what would go wrong; empty where nothing would.
        mend: the command that mends it, where there is one.
    """

    name: str
    state: State
    found: str
    trouble: str = ""
    mend: str = ""


def findings(folder: Path) -> Iterator[Finding]:
    """Look at the machine; ``folder`` is where shards and runs would go."""
    yield _memory(available_memory())
    yield _cores(len(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS"))
    for name, place in (("disk", folder.resolve()), ("disk for temporary files", Path(tempfile.gettempdir()))):
        yield _disk(name, place)
    if SHARED.is_dir():
        yield _shared_memory(shutil.disk_usage(SHARED).total)
    yield _open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    if left := [name for name in LAUNCHER if name in os.environ]:
        trouble = "a run would take itself for one rank of a job, and wait for the others"
        yield Finding("launcher", "warning", f"{', '.join(left)} set", trouble, f"unset {' '.join(left)}")


def _memory(free: int) -> Finding:
    found = f"{free / GIB:.1f} GiB free"
    if free < GIB:
        return Finding(
            "memory", "broken", found, "importing torch and one batch need about 1 GiB", "end other programs"
        )
    if free < 4 * GIB:
        return Finding("memory", "warning", found, "a ViT-B at micro_batch 64 needs more", "--set data.micro_batch=8")
    return Finding("memory", "ok", found)


def _cores(count: int, threads: str | None) -> Finding:
    found = f"{count} cores" + (f", OMP_NUM_THREADS={threads}" if threads else "")
    if threads == "1" and count > 1:
        return Finding(
            "cores", "warning", found, "a single process would train on one core only", "unset OMP_NUM_THREADS"
        )
    return Finding("cores", "ok", found)


def _disk(name: str, place: Path) -> Finding:
    try:
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free
    except OSError as error:
        return Finding(
            name, "broken", str(place), f"nothing can be written there: {error.strerror}", f"chmod u+w {place}"
        )
    found = f"{place}: {free / GIB:.1f} GiB free"
    if free < GIB // 2:
        return Finding(name, "broken", found, "shards and checkpoints would not fit", f"du -sh {place}/* | sort -h")
    if free < 10 * GIB:
        trouble = "a checkpoint of a ViT-B with its optimizer takes about 1.6 GB, and two are kept"
        return Finding(name, "warning", found, trouble, f"du -sh {place}/* | sort -h")
    return Finding(name, "ok", found)


def _shared_memory(size: int) -> Finding:
    found = f"{size / GIB:.1f} GiB"
    if size < GIB:
        trouble = "ranks on one machine talk through it and may die with a bus error"
        return Finding(
            "shared memory", "warning", found, trouble, "docker run --shm-size=2g, or mount -o remount,size=2g /dev/shm"
        )
    return Finding("shared memory", "ok", found)


def _open_files(limit: int) -> Finding:
    found = "unlimited" if limit == resource.RLIM_INFINITY else str(limit)
    if limit != resource.RLIM_INFINITY and limit < 4096:
        trouble = f"each rank keeps its shards open: of more than {limit - 256}, images open theirs anew"
        return Finding("open files", "warning", found, trouble, "ulimit -Hn 65536, as root")
    return Finding("open files", "ok", found)


def available_memory() -> int:
    """Bytes that a new process may take: the machine's, or what a container's limit leaves."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limit, used = _lines("/sys/fs/cgroup/memory.max"), _lines("/sys/fs/cgroup/memory.current")
    if limit and used and limit[0].isdigit():
        free = min(free, int(limit[0]) - int(used[0]))
    return free


def processor() -> str:
    """What the processor calls itself."""
    named = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return named[0] if named else platform.machine()


def named() -> str:
    """What computes here: the accelerator of this process, or else the processor."""
    import torch

    cores = len(os.sched_getaffinity(0))
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{processor()}, {cores} cores"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii").splitlines()
    except OSError:
        return []
