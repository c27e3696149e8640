"""Memory of sharding and streaming many small images: resident, of all processes together.

Makes COUNT small JPEG files, shards them, reads them as a training stream, and prints the most
that was held at any time: with pages that the processes share (those of libraries, and of the
server that workers are forked from) counted once, and as the plain sum of resident sizes.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

STREAM = """
import itertools, sys
from pathlib import Path
from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.data.order import Share
from mae_pipe.data.stream import open_stream
stream = open_stream(Path(sys.argv[1]), "train", recipe.Data(size=32, workers=2), seed=0,
                     share=Share(micro_batch=256), catalog=Catalog())
seen = sum(len(batch.numbers) for batch in itertools.islice(stream.batches(), -(-stream.images // 256)))
print(f"{seen:,} images read")
"""


def make_images(folder: Path, count: int) -> None:
    """Small JPEG files in ten class folders."""
    rng = np.random.default_rng(0)
    for number in range(10):
        (folder / f"class{number}").mkdir(parents=True)
    for number in range(count):
        out = io.BytesIO()
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((32, 32), Image.Resampling.BICUBIC).save(out, "JPEG")
        (folder / f"class{number % 10}" / f"{number:07d}.jpg").write_bytes(out.getvalue())


def family(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from family(int(child))


def memory_of(pid: int) -> tuple[float, float, float]:
    """MB of a process: its own, with a share of what it inherited; of mapped files; resident in all.

    Files are taken from the process that maps most of them: the others map the same libraries.
    """
    rollup = dict(re.findall(r"^(\w+): +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE))
    status = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))
    own = int(rollup["Pss_Anon"]) + int(rollup["Pss_Shmem"])
    return own / 1000, int(status["RssFile"]) / 1000, int(rollup["Rss"]) / 1000


def watch(command: list[str]) -> tuple[float, float, float]:
    """Run a command; returns seconds, and its processes' peak MB with shared pages counted once, and each time."""
    began = time.monotonic()
    running = subprocess.Popen(command)
    shared_once, plain = 0.0, 0.0
    while running.poll() is None:
        try:
            held = [memory_of(pid) for pid in family(running.pid)]
        except (OSError, KeyError):  # one of them ended meanwhile
            continue
        shared_once = max(shared_once, sum(own for own, _, _ in held) + max(files for _, files, _ in held))
        plain = max(plain, sum(resident for _, _, resident in held))
        time.sleep(0.1)
    if running.returncode:
        raise SystemExit(f"{command} ended with {running.returncode}")
    return time.monotonic() - began, shared_once, plain


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--formats", nargs="+", default=["webdataset", "ffcv"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_images(folder / "images", arguments.count)
        print("what                  seconds   MB (shared pages once)   MB (sum of resident)")
        for format in arguments.formats:
            out = folder / format
            shard = [sys.executable, "-m", "mae_pipe", "shard", str(folder / "images"), str(out), "--format", format]
            for what, command in (
                (f"shard {format}", [*shard, "--workers", str(arguments.workers)]),
                (f"stream {format}", [sys.executable, "-c", STREAM, str(out)]),
            ):
                seconds, shared_once, plain = watch(command)
                print(f"{what:20s} {seconds:8.1f} {shared_once:12.0f} {plain:24.0f}", flush=True)


if __name__ == "__main__":
    main()
