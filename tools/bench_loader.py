"""Loaders compared on the same photos in one run: images a second, and how many times as many ours makes.

Every contestant runs in a process of its own and stays there; rounds go through all of them in turn, so that a busy
minute of the machine meets all, and the others are stopped meanwhile. The files are in the page cache. What does not
install is left out, by name.

    tools/bench_loader_setup.sh PEERS
    python tools/bench_loader.py --photos photos.tar --peers PEERS --out benchmarks/loader.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from loader_contestants import BATCH, CONTESTANTS, FORK, SCALE, SIZE
from PIL import Image

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.data import region
from mae_pipe.data.order import Share
from mae_pipe.data.stream import open_stream
from mae_pipe.sharding import build

ROOT = Path(__file__).parents[1]
COMMIT = [shutil.which("git") or "git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]


def prepare(photos: Path, work: Path) -> None:
    """What the contestants read, made of the same photos."""
    originals = work / "originals"
    if not originals.exists():
        with tarfile.open(photos) as archive:
            archive.extractall(work / "new", filter="data")  # which refuses what would leave the folder
        (work / "new").rename(originals)
    files = sorted(originals.rglob("*.JPEG"))
    if not (work / "tars").exists():
        (work / "tars").mkdir()
        for shard, start in enumerate(range(0, len(files), 125)):
            with tarfile.open(work / "tars" / f"{shard:04d}.tar", "w") as out:
                for path in files[start : start + 125]:
                    out.add(path, f"{path.stem}.jpg")
                    label = work / "label.cls"
                    label.write_text("0")
                    out.add(label, f"{path.stem}.cls")
    make_betons(files, work)
    if not (work / "q90").exists() and (work / "q90.beton").exists():
        extract_q90(files, work)
    for name, source, options in (
        ("shards-originals", "originals", {}),
        ("shards-planes", "originals", {"planes": True}),
        ("shards-q90", "q90", {}),
    ):
        if (work / source).exists() and not (work / name).exists():
            build(work / source, work / name, catalog=Catalog(), splits=["train"], **options)  # type: ignore[arg-type]


def make_betons(files: list[Path], work: Path) -> None:
    """FFCV's own files, by its own writer."""
    try:
        from ffcv.fields import IntField, RGBImageField
        from ffcv.writer import DatasetWriter
    except ImportError:
        return

    class Photos:
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, number: int) -> tuple[Any, int]:
            return Image.open(files[number]).convert("RGB"), number

    for name, options in (
        ("q90", {"write_mode": "jpg", "jpeg_quality": 90}),
        ("raw", {"write_mode": "raw"}),
        ("raw512", {"write_mode": "raw", "max_resolution": 512}),
    ):
        path = work / f"{name}.beton"
        if not path.exists():
            fields = {"image": RGBImageField(**options), "label": IntField()}
            DatasetWriter(str(path), fields, num_workers=1, page_size=32 << 20).from_indexed_dataset(Photos())


def extract_q90(files: list[Path], work: Path) -> None:
    """The very JPEG bytes that FFCV wrote, as files."""
    from ffcv.reader import Reader

    beton = Reader(str(work / "q90.beton"))
    data = (work / "q90.beton").read_bytes()
    sizes = {int(row["ptr"]): int(row["size"]) for row in beton.alloc_table}
    field = beton.metadata.dtype.names[beton.field_names.index("image")]
    new = work / "q90.tmp"
    shutil.rmtree(new, ignore_errors=True)
    for path, row in zip(files, beton.metadata[field], strict=True):
        start = int(row["data_ptr"])
        target = new / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data[start : start + sizes[start]])
    new.rename(work / "q90")


def exact(work: Path) -> str:
    """How many of ours equal Pillow's, on whole batches of each kind of file."""
    said = []
    for name in ("shards-originals", "shards-q90"):
        batches = []
        kept = region._native
        for native in (kept, None):
            region._native = native
            data = recipe.Data(size=SIZE, workers=1, crop_scale=SCALE)
            stream = open_stream(work / name, "train", data, seed=0, share=Share(micro_batch=256), catalog=Catalog())
            batches.append(next(stream.batches()).pixels.numpy())
            stream.close()
        region._native = kept
        equal = sum(np.array_equal(one, other) for one, other in zip(*batches, strict=True))
        said.append(f"{name}: {equal} of {len(batches[0])} views equal Pillow's to the last bit")
    return "\n".join(said)


class Process:
    """A contestant at work."""

    def __init__(self, name: str, work: Path, workers: int, python: str) -> None:
        command = [python, str(ROOT / "tools" / "loader_contestants.py"), name, str(work), str(workers)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            start_new_session=True,
        )
        first = self._answer()
        self._signal(signal.SIGSTOP)
        self.trouble = None if "ready" in first else str(first.get("left out", first))

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return (
            json.loads(line) if line.startswith("{") else {"left out": f"it ended: {line.strip() or 'without a word'}"}
        )

    def _signal(self, number: int) -> None:
        """To it and its workers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def rate(self, images: int) -> float:
        """Images a second, while all others stand still."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        self._process.stdin.write(f"{images}\n")
        self._process.stdin.flush()
        rate = float(self._answer()["rate"])
        self._signal(signal.SIGSTOP)
        return rate

    def end(self) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()


def bytes_of(work: Path, kind: str) -> int:
    """What the photos take in that form."""
    places = {"originals": "originals", "q90": "q90", "planes": "shards-planes"}
    place = work / places.get(kind, f"{kind}.beton")
    return sum(path.stat().st_size for path in ([place] if place.is_file() else place.rglob("*")) if path.is_file())


def three(values: list[float], form: str = ".0f") -> str:
    return " / ".join(format(value, form) for value in (min(values), statistics.median(values), max(values)))


def measured(
    names: list[str], work: Path, workers: int, pythons: dict[str, str], rounds: int, images: int
) -> dict[str, list[float]]:
    """Rates by contestant, a round each; all of them are started first."""
    found: dict[str, list[float]] = {}
    running: dict[str, Process] = {}
    for name in names:
        process = Process(name, work, workers, pythons.get(name, pythons[""]))
        if process.trouble:
            print(f"left out with {workers} workers: {name}: {process.trouble}")
            process.end()
        else:
            running[name] = process
    try:
        for _ in range(rounds):
            for name, process in running.items():
                found.setdefault(name, []).append(process.rate(images))
    finally:
        for process in running.values():
            process.end()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="a tar of CLASS/NAME.JPEG")
    parser.add_argument("--work", type=Path, help="a folder to keep what is prepared")
    parser.add_argument("--peers", type=Path, help="the folder of bench_loader_setup.sh")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=768, help="in a round")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="contestants whose name has one of them")
    parser.add_argument("--out", type=Path, help="a JSON file of every figure")
    options = parser.parse_args()
    pythons = {"": sys.executable}
    if options.peers:
        pythons = {"": str(options.peers / "env/bin/python"), FORK: str(options.peers / "fork/bin/python")}
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        prepare(options.photos, work)
        if not Path(pythons.get(FORK, "")).is_file():
            print(f"left out: {FORK}: not built")
            CONTESTANTS.pop(FORK)
        names = [n for n in CONTESTANTS if not options.only or any(word in n for word in options.only)]
        photos = sum(1 for _ in (work / "originals").rglob("*.JPEG"))
        commit = subprocess.run(COMMIT, capture_output=True, text=True, check=False)
        about = {
            "machine": f"{cpu()}, {os.cpu_count()} cores",
            "commit": commit.stdout.strip(),
            "decoder": region.decoder(),
            "versions": {name: metadata.version(name) for name in ("pillow", "torch", "numpy", "webdataset")},
            "photos": photos,
        }
        print(f"{photos} photos, RandomResizedCrop({SIZE}, {SCALE[0]} to {SCALE[1]}), flip, batches of {BATCH}; "
              f"{about['machine']}, commit {about['commit']}; {about['decoder']}")  # fmt: skip
        print(exact(work))
        results: dict[str, Any] = {"about": about, "rates": {}}
        for workers in options.workers:
            rates = measured(names, work, workers, pythons, options.rounds, options.images)
            results["rates"][workers] = rates
            print(f"\n{workers} worker{'s' * (workers > 1)}: images/s, min / median / max of {options.rounds} rounds; "
                  f"ours on the same bytes (of raw: on planes) is so many times as fast")  # fmt: skip
            for name, found in rates.items():
                kind, mine = CONTESTANTS[name][1:]
                ratio = ""
                if mine in rates:
                    ratio = three([a / b for a, b in zip(rates[mine], found, strict=True)], ".2f")
                kilobytes = bytes_of(work, kind) / photos / 1000
                print(f"{name:34} {three(found):>20}   {ratio:20} {kilobytes:6.0f} kB an image")
        if options.out:
            options.out.write_text(json.dumps(results, indent=1) + "\n")


def cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
