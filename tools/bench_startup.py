"""How soon the first batch of a large data set is there, and what its order and index hold in memory.

Makes a folder of shards that looks like a large one: every shard file is a hard link to one of small JPEGs, and the
manifest and index have a row for every image. A process of its own then opens it, as training does.

    python tools/bench_startup.py --images 1300000 --shards 1000
    python tools/bench_startup.py --images 14000000 --shards 10000
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from mae_pipe.catalog import Catalog
from mae_pipe.data.index import SampleIndex
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.parts import sha256_of
from mae_pipe.sharding import build

CHILD = """
import json, sys, time
def memory():
    lines = dict(line.split(":") for line in open("/proc/self/status") if line.startswith("Rss"))
    return {name: int(value.split()[0]) / 1e3 for name, value in lines.items()}
import torch
from pathlib import Path
from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.data.order import Share
from mae_pipe.data.stream import open_stream
catalog, data = Catalog(), recipe.Data(size=32, workers=2)
catalog.entries
before, began = memory(), time.perf_counter()
stream = open_stream(Path(sys.argv[1]), "train", data, seed=0, share=Share(micro_batch=64), catalog=catalog)
opened = time.perf_counter() - began
batches = stream.batches()
next(batches)
first = time.perf_counter() - began
batches.close()
began = time.perf_counter()
batches = stream.batches(700 * stream.images + stream.images // 3)
next(batches)
resumed = time.perf_counter() - began
for _ in range(300):
    next(batches)
batches.close()
after = memory()
grown = {name: after[name] - before[name] for name in after}
print(json.dumps({"opened": opened, "first": first, "resumed": resumed, **grown}))
"""


def make(folder: Path, images: int, shards: int) -> None:
    """Shards that look like so many."""
    each = -(-images // shards)
    source, draw = folder / "source", np.random.default_rng(0)
    (source / "class").mkdir(parents=True)
    for number in range(each):
        out = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((48, 40)).save(out, "JPEG")
        (source / "class" / f"{number:06d}.jpg").write_bytes(out.getvalue())
    small = build(source, folder / "one", catalog=Catalog(), per_shard=each)
    split = small.splits["train"]
    one = SampleIndex.load(folder / "one", split.index)
    shelf = folder / "shards"
    shelf.mkdir()
    parts = []
    for number in range(shards):
        part = split.shards[0].model_copy(update={"name": f"train-{number:06d}.tar"})
        os.link(folder / "one" / split.shards[0].name, shelf / part.name)
        parts.append(part)
    whole = SampleIndex.joined([replace(one, shard=np.full(each, number, np.uint32)) for number in range(shards)])
    marks = shelf / "train.marks"
    marks.write_bytes((folder / "one" / "train.marks").read_bytes() * shards)
    whole.save(shelf / "train.index.safetensors")
    index = split.index.model_copy(
        update={"images": each * shards, "bytes": 0, "sha256": sha256_of(shelf / "train.index.safetensors")}
    )
    marked = split.index.model_copy(update={"name": marks.name, "bytes": marks.stat().st_size})
    made = split.model_copy(update={"images": each * shards, "shards": parts, "index": index, "marks": marked})
    Manifest(**{**small.model_dump(), "splits": {"train": made.model_dump()}}).save(shelf)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_300_000)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), options.images, options.shards)
        found = []
        for _ in range(options.runs):
            child = [sys.executable, "-c", CHILD, str(Path(folder) / "shards")]
            done = subprocess.run(child, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout))
    print(f"{options.images:,} images in {options.shards:,} shards, {options.runs} processes; min / median / max")
    for name, what in (
        ("opened", "s to open"),
        ("first", "s to the first batch of 64"),
        ("resumed", "s to the first batch at a position of epoch 700"),
        ("RssAnon", "MB of memory of its own, 300 batches later"),
        ("RssFile", "MB of mapped pages, which the kernel takes back when it likes"),
    ):
        values = [one[name] for one in found]
        print(f"{min(values):8.2f} / {statistics.median(values):8.2f} / {max(values):8.2f} {what}")


if __name__ == "__main__":
    main()
