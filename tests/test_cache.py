"""Fetched shards: kept by content, within a size, for any number of processes, whatever happens to them."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mae_pipe.data import cache as caching
from mae_pipe.data import fetch
from mae_pipe.data.address import Address
from mae_pipe.data.cache import Cache, Held
from mae_pipe.data.fetch import Abandoned, Patience, Unreachable
from mae_pipe.data.manifest import Shard
from mae_pipe.errors import DataError, DiskError
from tests.servers import Plan, of_folder, serving

SIZE = 50_000
STOP = threading.Event()
HOLD = """
import sys, threading
from pathlib import Path
from mae_pipe.data.address import Address
from mae_pipe.data.cache import Cache
from mae_pipe.data.manifest import Shard
folder, url, name, size, digest, then = sys.argv[1:]
part = Shard(name=name, images=1, bytes=int(size), sha256=digest)
held = Cache(Path(folder), 10**9).hold(part, Address.of(url) / name, threading.Event())
print(held.path.stat().st_size, flush=True)
if then == "wait":
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        fetch, "PATIENCE", Patience(piece=1 << 14, stall=2, attempts=3, refusals=2, first=0.001, most=0.01)
    )
    monkeypatch.setattr(caching, "PATIENT", 1.0)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Address, list[Shard], Plan]]:
    """Eight files, their address, and the server's plan."""
    folder, shards = tmp_path / "served", []
    folder.mkdir()
    draw = np.random.default_rng(1)
    for number in range(8):
        data = draw.integers(0, 256, SIZE, dtype=np.uint8).tobytes()
        (folder / f"t-{number}.tar").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        shards.append(Shard(name=f"t-{number}.tar", images=1, bytes=SIZE, sha256=digest))
    with serving(of_folder(folder)) as (url, plan):
        yield Address.of(url), shards, plan


def held(cache: Cache, served: tuple[Address, list[Shard], Plan], number: int) -> Held:
    address, shards, _ = served
    return cache.hold(shards[number], address / shards[number].name, STOP)


def test_a_file_is_fetched_once_and_then_kept(tmp_path: Path, served: tuple[Address, list[Shard], Plan]) -> None:
    cache = Cache(tmp_path / "cache", 10**9)
    for _ in range(3):
        one = held(cache, served, 0)
        assert hashlib.sha256(one.path.read_bytes()).hexdigest() == served[1][0].sha256
        one.close()
    assert served[2].requests == ["/t-0.tar"]
    assert sorted(path.name for path in cache.folder.iterdir()) == [f"{served[1][0].sha256}.tar", "lock"]


def test_files_of_one_name_are_not_taken_for_each_other(
    tmp_path: Path, served: tuple[Address, list[Shard], Plan]
) -> None:
    """Two hosts with a train-000000.tar each, which webdataset's cache mixes up."""
    cache = Cache(tmp_path / "cache", 10**9)
    one, two = (shard.model_copy(update={"name": "same.tar"}) for shard in served[1][:2])
    a = cache.hold(one, served[0] / "t-0.tar", STOP)
    b = cache.hold(two, served[0] / "t-1.tar", STOP)
    assert a.path.read_bytes() != b.path.read_bytes()


def test_the_cache_keeps_within_its_size_and_the_newest_stay(
    tmp_path: Path, served: tuple[Address, list[Shard], Plan]
) -> None:
    cache = Cache(tmp_path / "cache", 3 * SIZE + 100)
    for number in (0, 1, 2, 0, 3, 0, 4):
        held(cache, served, number).close()
        os.utime(cache.path(served[1][number]), (number_of_uses(cache), number_of_uses(cache)))
        assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= cache.size
    assert served[2].requests.count("/t-0.tar") == 1, "it was used again and again"
    kept = {path.name for path in cache.folder.iterdir()} - {"lock"}
    assert kept == {f"{served[1][number].sha256}.tar" for number in (3, 0, 4)}


_uses = iter(range(1_000_000_000, 2_000_000_000))


def number_of_uses(cache: Cache) -> int:
    return next(_uses)  # times of a second apart, as a test must not wait for clocks


def test_what_is_being_read_stays_and_what_needs_its_room_is_told(
    tmp_path: Path, served: tuple[Address, list[Shard], Plan]
) -> None:
    cache = Cache(tmp_path / "cache", 2 * SIZE + 100)
    one, two = held(cache, served, 0), held(cache, served, 1)
    with pytest.raises(Unreachable, match=r"all 100.0 kB in it are being read and 50.0 kB more .*MAE_PIPE_CACHE_SIZE"):
        held(cache, served, 2)
    assert one.path.is_file()
    one.close()
    held(cache, served, 2).close()
    assert not one.path.exists()
    assert two.path.is_file()
    with pytest.raises(Unreachable, match=r"t-3.tar alone has 50.0 kB"):
        held(Cache(tmp_path / "other", 1000), served, 3)


def test_processes_share_it_and_one_of_them_fetches(tmp_path: Path, served: tuple[Address, list[Shard], Plan]) -> None:
    address, shards, plan = served
    given = [str(tmp_path / "cache"), address.url, "t-0.tar", str(SIZE), shards[0].sha256]
    children = [
        subprocess.Popen([sys.executable, "-c", HOLD, *given, "end"], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [child.communicate()[0] for child in children] == [f"{SIZE}\n"] * 4
    assert plan.requests == ["/t-0.tar"]


def test_another_process_keeps_what_it_reads_until_it_is_gone(
    tmp_path: Path, served: tuple[Address, list[Shard], Plan]
) -> None:
    address, shards, _ = served
    given = [str(tmp_path / "cache"), address.url, "t-0.tar", str(SIZE), shards[0].sha256, "wait"]
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, *given], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == f"{SIZE}\n"
    cache = Cache(tmp_path / "cache", SIZE + 100)
    with pytest.raises(Unreachable, match="being read"):
        held(cache, served, 1)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    held(cache, served, 1).close()


def test_a_process_that_was_killed_while_it_fetched_leaves_nothing_in_the_way(
    tmp_path: Path, served: tuple[Address, list[Shard], Plan]
) -> None:
    address, shards, plan = served
    plan.fault = lambda path, number: "stall" if number == 0 else ""
    given = [str(tmp_path / "cache"), address.url, "t-0.tar", str(SIZE), shards[0].sha256, "end"]
    child = subprocess.Popen([sys.executable, "-c", HOLD, *given], stdout=subprocess.PIPE, text=True)
    while not list((tmp_path / "cache").glob("*.part")) or not plan.requests:
        assert child.poll() is None
    child.kill()
    child.communicate()
    cache = Cache(tmp_path / "cache", SIZE + 100)  # the half file counts, until it is removed
    held(cache, served, 1).close()
    held(cache, served, 0).close()
    assert len(list(cache.folder.glob("*.part"))) == 0


def test_what_came_with_another_hash_is_fetched_again_and_then_refused(
    tmp_path: Path, served: tuple[Address, list[Shard], Plan]
) -> None:
    cache = Cache(tmp_path / "cache", 10**9)
    served[2].fault = lambda path, number: "flip" if number < 2 else ""
    held(cache, served, 0).close()
    assert len(served[2].requests) == 3
    served[2].fault = lambda path, number: "swap"
    with pytest.raises(
        Unreachable, match=r"t-1.tar is not the shard that its manifest names: 50,000 bytes came 3 times"
    ):
        held(cache, served, 1)
    assert [path.name for path in cache.folder.glob("*") if path.name != "lock"] == [f"{served[1][0].sha256}.tar"]


def test_a_cut_file_in_the_cache_is_fetched_anew(tmp_path: Path, served: tuple[Address, list[Shard], Plan]) -> None:
    cache = Cache(tmp_path / "cache", 10**9)
    held(cache, served, 0).close()
    cache.path(served[1][0]).write_bytes(b"cut")
    assert held(cache, served, 0).path.stat().st_size == SIZE
    assert len(served[2].requests) == 2


def test_a_full_disk_is_a_sentence_and_leaves_no_half_file(
    tmp_path: Path, served: tuple[Address, list[Shard], Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(caching, "_write", full)
    cache = Cache(tmp_path / "cache", 10**9)
    with pytest.raises(DiskError, match=r"the disk of the cache .* is full; free some space, or set MAE_PIPE_CACHE"):
        held(cache, served, 0)
    assert [path.name for path in cache.folder.iterdir()] == ["lock"]


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError, match="set MAE_PIPE_CACHE to a folder of yours"):
        Cache(tmp_path / "file" / "cache")


def test_whoever_stops_waits_neither_for_a_server_nor_for_room(
    tmp_path: Path, served: tuple[Address, list[Shard], Plan]
) -> None:
    cache, stop = Cache(tmp_path / "cache", SIZE + 100), threading.Event()
    one = held(cache, served, 0)
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(Abandoned):
        cache.hold(served[1][1], served[0] / "t-1.tar", stop)
    one.close()
    served[2].fault = lambda path, number: "stall"
    with pytest.raises(Abandoned):
        cache.hold(served[1][1], served[0] / "t-1.tar", stop)
    assert len(list(cache.folder.glob("*.part"))) == 0


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5 tb", 15 * 10**11), ("700m", 7 * 10**8), ("9", 9)])
def test_its_size_is_what_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    monkeypatch.setenv("MAE_PIPE_CACHE_SIZE", text)
    monkeypatch.setenv("MAE_PIPE_CACHE", str(tmp_path))
    assert Cache().size == size
    assert Cache().folder == tmp_path / "shards"


def test_a_size_that_is_none_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAE_PIPE_CACHE_SIZE", "lots")
    with pytest.raises(DataError, match="MAE_PIPE_CACHE_SIZE is 'lots'; expected a size such as 100GB"):
        Cache(tmp_path)


def test_without_a_word_it_leaves_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAE_PIPE_CACHE_SIZE", raising=False)
    import shutil

    assert Cache(tmp_path).size <= max(0.91 * shutil.disk_usage(tmp_path).free, 1)
