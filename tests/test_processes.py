"""Batches that processes fill are those that threads fill; whoever ends how, nothing hangs and nothing is left."""

from __future__ import annotations

import gc
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.data import fetch, processes
from mae_pipe.data.batch import Batch
from mae_pipe.data.fetch import Patience
from mae_pipe.data.order import Share
from mae_pipe.data.stream import Stream, open_stream
from mae_pipe.direct import shards_of
from mae_pipe.errors import DataError, TrainingError
from mae_pipe.sharding import build
from mae_pipe.views import Crop
from tests.batches import assert_same, first
from tests.servers import of_folder, serving

IMAGES = 23
SCRIPT = Path(__file__).parent / "workers" / "read_in_processes.py"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 images in three classes, with a map each, and a table of lists of classes."""
    folder, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    rows = ["path,labels"]
    for i in range(IMAGES):
        height, width = (int(n) for n in draw.integers(24, 60, 2))
        coarse = Image.fromarray(draw.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        name = f"class{i % 3}/{i}"
        for place in ("plain", "maps"):
            (folder / place / name).parent.mkdir(parents=True, exist_ok=True)
        ending = "png" if i % 5 == 0 else "jpg"
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / "plain" / f"{name}.{ending}")
        Image.fromarray(draw.integers(0, 4, (height, width), dtype=np.uint8)).save(folder / "maps" / f"{name}.png")
        rows.append(f"{name}.{ending},{';'.join('abc'[: i % 4])}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "shards"
    build(
        images / "plain",
        out,
        catalog=Catalog(),
        workers=1,
        per_shard=5,
        maps=images / "maps",
        labels=images / "labels.csv",
    )
    return out


@pytest.fixture(scope="module")
def classed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("classed") / "shards"
    build(images / "plain", out, catalog=Catalog(), workers=1, per_shard=5)
    return out


def opened(shards: Path, kind: str, share: Share | None = None, *, workers: int = 2, **given: Any) -> Stream:
    changes = {name: given.pop(name) for name in list(given) if name in recipe.Data.model_fields}
    data = recipe.Data(**{"size": 16, "workers": workers, "worker_kind": kind, **changes})
    chosen = share or Share(micro_batch=4)
    return open_stream(shards, "train", data, seed=0, share=chosen, catalog=Catalog(), **given)


def children() -> list[int]:
    """The worker processes of this one."""
    found = Path("/proc/self/task").glob("*/children")
    numbers = [int(word) for path in found for word in path.read_text(encoding="ascii").split()]
    return sorted(number for number in numbers if b"mae_pipe.data.worker" in _command(number))


def _command(number: int) -> bytes:
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return b""


def memory() -> int:
    """Mappings of batches in this process."""
    return Path("/proc/self/maps").read_text(encoding="ascii").count("memfd:mae-pipe")


@pytest.mark.parametrize(
    ("workers", "given"),
    [
        (1, {}),
        (3, {"share": Share(1, 3, 2)}),
        (5, {"share": Share(micro_batch=3)}),
        (2, {"labels": "multi"}),
        (2, {"labels": "map", "crop": "fixed"}),
        (2, {"views": (Crop(), Crop(scale=(0.05, 0.25)), Crop(size=8)), "jitter": (0.4, 0.4, 0.4, 0.1)}),
        (2, {"repeats": 3, "crop": "centre", "size": (24, 16), "interpolation": "lanczos"}),
    ],
)
def test_processes_give_the_batches_of_threads(shards: Path, workers: int, given: dict[str, Any]) -> None:
    for start in (0, 36):
        ours = first(opened(shards, "process", workers=workers, **given), 9, start)
        assert_same(ours, first(opened(shards, "thread", **given), 9, start))


@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_sees_every_image_once(classed: Path, world: int) -> None:
    for rank in range(world):
        both = [
            list(opened(classed, kind, Share(rank, world, 4), training=False).once()) for kind in ("process", "thread")
        ]
        assert_same(*both)


def test_batches_that_are_kept_are_not_written_over(classed: Path) -> None:
    """Which ffcv's are: its list of all batches holds the last ones many times."""
    kept = first(opened(classed, "process"), 30)
    assert_same(kept, first(opened(classed, "thread"), 30))


def test_memory_is_used_again_and_given_back(classed: Path) -> None:
    before = memory()
    with closing(opened(classed, "process")) as stream, closing(stream.batches()) as batches:  # type: ignore[type-var]
        for _ in range(40):
            batch = next(batches)
            assert memory() - before <= processes.SLOTS
        part = batch.pixels[1:2]
        expected = part.clone()
        del batch
        for _ in range(20):
            next(batches)
        assert part.equal(expected), "a part holds its batch"
    del batches, stream
    gc.collect()
    assert memory() - before <= 1
    del part
    gc.collect()
    assert memory() == before


def test_what_is_wrong_with_shards_is_said_as_threads_say_it(images: Path, tmp_path: Path) -> None:
    build(images / "plain", tmp_path / "s", catalog=Catalog(), workers=1, per_shard=100)
    stream = opened(tmp_path / "s", "process")
    shard = tmp_path / "s" / stream.shelf.split.shards[0].name
    content = bytearray(shard.read_bytes())
    content[int(stream.index.offset[5]) + 40] ^= 1
    shard.write_bytes(content)
    said = []
    for kind in ("process", "thread"):
        with pytest.raises(DataError) as caught:
            first(opened(tmp_path / "s", kind), 8)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert stream.index.key(5) in said[0]
    assert children() == []


@pytest.mark.parametrize(("number", "words"), [(9, "SIGKILL, most often for lack of memory"), (11, "SIGSEGV, a crash")])
def test_a_killed_worker_is_named_at_once(classed: Path, number: int, words: str) -> None:
    with closing(opened(classed, "process")) as stream, closing(stream.batches()) as batches:  # type: ignore[type-var]
        next(batches)
        worker = children()[0]
        os.kill(worker, number)
        with pytest.raises(TrainingError, match=rf"worker process 1 of 2 \(process {worker}\) was ended by {words}"):
            list(itertools.islice(batches, 20))
    assert children() == []


def test_a_stopped_worker_holds_nobody_up_who_ends(classed: Path) -> None:
    with closing(opened(classed, "process")) as stream, closing(stream.batches()) as batches:  # type: ignore[type-var]
        next(batches)
        os.kill(children()[0], signal.SIGSTOP)
    assert children() == []


def test_an_early_end_and_an_error_in_the_reader_leave_no_process(classed: Path) -> None:
    batches: Iterator[Batch] = opened(classed, "process").batches()
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert children() == []

    def read() -> None:
        with closing(opened(classed, "process").batches()) as others:  # type: ignore[type-var]
            next(others)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read()
    assert children() == []


def alive(numbers: list[int]) -> list[int]:
    return [number for number in numbers if Path(f"/proc/{number}").exists() and not _is_zombie(number)]


def _is_zombie(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("how", ["raise", "leave", "kill"])
def test_a_script_that_ends_in_any_way_leaves_no_process(classed: Path, how: str) -> None:
    given = [sys.executable, str(SCRIPT), str(classed), "hold" if how == "kill" else how]
    pipe = subprocess.PIPE
    with subprocess.Popen(given, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as script:
        assert script.stdout is not None
        assert script.stderr is not None
        workers = [int(word) for word in script.stdout.readline().split()]
        assert len(workers) == 2
        if how == "kill":
            script.kill()
        code = script.wait(timeout=60)
        said = script.stderr.read()
    assert code == {"raise": 1, "leave": 0, "kill": -9}[how], said
    assert ("in the reader" in said) == (how == "raise")
    deadline = time.monotonic() + 20
    while alive(workers) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert alive(workers) == []


def test_shards_elsewhere_are_read_by_processes_too(
    classed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAE_PIPE_CACHE", str(tmp_path))
    monkeypatch.setattr(fetch, "PATIENCE", Patience(stall=5, first=0.001, most=0.01))
    windowed: dict[str, Any] = {"order": "window", "window": 8}
    with serving(of_folder(classed)) as (url, plan):
        far = first(opened(shards_of(url, Catalog()), "process", **windowed), 18)
        tars = [path for path in plan.requests if path.endswith(".tar")]
    assert_same(far, first(opened(classed, "thread", **windowed), 18))
    assert len(tars) == len(set(tars))


def test_a_stream_says_what_its_batches_take(classed: Path) -> None:
    about = opened(classed, "process", Share(micro_batch=1000), size=224, workers=3).about
    found = re.search(r"3 processes, up to ([0-9,.]+) MB of batches under way", about)
    assert found
    megabytes = processes.SLOTS * 1000 * 3 * 224 * 224 / 1e6
    assert float(found[1].replace(",", "")) == pytest.approx(megabytes, rel=1e-3)
