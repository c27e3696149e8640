"""Random damage to shards, cache and server: the same samples, or one sentence that names the shard."""

from __future__ import annotations

import itertools
import re
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.data import cache as caching
from mae_pipe.data import fetch
from mae_pipe.data.batch import Batch
from mae_pipe.data.fetch import Patience
from mae_pipe.data.order import Share
from mae_pipe.data.stream import open_stream
from mae_pipe.direct import shards_of
from mae_pipe.errors import DataError
from mae_pipe.sharding import build
from tests.servers import KINDS, Plan, of_folder, serving

IMAGES = 40
NAMED = re.compile(r"train-\d{6}\.(tar|beton)|train\.(index\.safetensors|marks)|manifest\.json")
Draw = np.random.Generator


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    patience = Patience(piece=1 << 12, stall=0.15, attempts=3, refusals=2, first=0.001, most=0.004)
    monkeypatch.setattr(fetch, "PATIENCE", patience)
    monkeypatch.setattr(caching, "PATIENT", 2.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same 40 images in both formats."""
    root, draw = tmp_path_factory.mktemp("faults"), np.random.default_rng(0)
    for number in range(IMAGES):
        coarse = Image.fromarray(draw.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        path = root / "images" / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((60, 48), Image.Resampling.BICUBIC).save(path, quality=92)
    formats = ["webdataset"]
    if Catalog().names("shards") and _has_ffcv():
        formats.append("ffcv")
    for name in formats:
        build(root / "images", root / name, format=name, catalog=Catalog(), workers=1, per_shard=8, shuffle=True)
    return {name: root / name for name in formats}


def _has_ffcv() -> bool:
    import importlib.util

    return importlib.util.find_spec("ffcv") is not None


def epochs(place: Path | str) -> list[Batch]:
    """Two epochs and a half, in windows."""
    data = recipe.Data(size=16, workers=2, order="window", window=16)
    shards = shards_of(place, Catalog())
    stream = open_stream(shards, "train", data, seed=0, share=Share(micro_batch=5), catalog=Catalog())
    with closing(stream), closing(stream.batches()) as batches:  # type: ignore[type-var]
        return list(itertools.islice(batches, 20))


def _flip(path: Path, draw: Draw) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(int(draw.integers(1, 4))):
        content[int(draw.integers(0, len(content)))] ^= 1 << int(draw.integers(0, 8))
    path.write_bytes(content)


def _cut(path: Path, draw: Draw) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(draw.integers(0, len(content)))])


def _zeros(path: Path, draw: Draw) -> None:
    content = bytearray(path.read_bytes())
    start = int(draw.integers(0, len(content)))
    stop = min(len(content), start + 512)
    content[start:stop] = bytes(stop - start)
    path.write_bytes(content)


def _longer(path: Path, draw: Draw) -> None:
    path.write_bytes(path.read_bytes() + bytes(int(draw.integers(1, 2000))))


def _gone(path: Path, draw: Draw) -> None:
    path.unlink()


def _swapped(path: Path, draw: Draw) -> None:
    others = [other for other in path.parent.glob(f"train-*{path.suffix}") if other != path]
    if others:
        path.write_bytes(others[int(draw.integers(len(others)))].read_bytes())


DAMAGES: list[Callable[[Path, Draw], None]] = [_flip, _flip, _cut, _zeros, _longer, _gone, _swapped]


def damaged(folder: Path, draw: Draw) -> str:
    """Damage one or two of a folder's files."""
    said = []
    for _ in range(int(draw.integers(1, 3))):
        files = sorted(path for path in folder.iterdir() if NAMED.fullmatch(path.name) and path.stat().st_size)
        path, damage = files[int(draw.integers(len(files)))], DAMAGES[int(draw.integers(len(DAMAGES)))]
        damage(path, draw)
        said.append(f"{damage.__name__} {path.name}")
    return ", ".join(said)


def one(
    case: int, folders: dict[str, Path], place: Path, expected: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> str:
    """One fault: what became of it. Raises where samples are other ones, or a sentence names nothing."""
    draw = np.random.default_rng(case)
    form = list(folders)[int(draw.integers(len(folders)))]
    kind = ["folder", "server", "file server", "cache"][int(draw.integers(4))]
    served = Path(shutil.copytree(folders[form], place / "served"))
    monkeypatch.setenv("MAE_PIPE_CACHE", str(place / "cache"))
    faults = [str(name) for name in draw.choice(KINDS, 2)]
    often = float(draw.choice([0.1, 0.3, 0.9]))
    plan = Plan(lambda path, number: faults[number % 2] if kind == "server" and draw.random() < often else "")
    what = f"{faults} at {often}" if kind == "server" else ""
    try:
        with serving(of_folder(served), plan) as (url, _):
            if kind == "cache":
                assert len(epochs(url)) == 20
                for path in (place / "cache" / "shards").glob("*.*"):
                    if draw.random() < 0.5:
                        damage = [_flip, _cut, _zeros, _longer, _gone][int(draw.integers(5))]
                        damage(path, draw)
            elif kind != "server":
                what = damaged(served, draw)
            came = epochs(served if kind == "folder" else url)
    except DataError as error:
        said = str(error)
    else:
        said = ""
    if said:
        assert NAMED.search(said), f"case {case}, {form}, {kind}, {what}: {said}"
        assert "\n" not in said
        assert kind != "cache", f"case {case}: {said}"
        return f"{kind}: named"
    for ours, right in zip(came, expected, strict=True):
        for number, (one, other) in enumerate(zip(ours.tensors, right.tensors, strict=True)):
            assert one.equal(other), f"case {case}, {form}, {kind}, {what}: other tensor {number}"
    return f"{kind}: healed, or harmless"


@pytest.mark.parametrize("cases", [range(25), pytest.param(range(25, 560), marks=pytest.mark.slow)], ids=["25", "535"])
@pytest.mark.timeout(900)
def test_a_fault_is_healed_or_named(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cases: range
) -> None:
    expected = epochs(folders["webdataset"])
    found: Counter[str] = Counter()
    for case in cases:
        place = tmp_path / str(case)
        found[one(case, folders, place, expected, monkeypatch)] += 1
        shutil.rmtree(place, ignore_errors=True)  # a thread that fetches may still be about to end
    print(dict(sorted(found.items())))
    assert set(found) >= {"folder: named", "server: named", "server: healed, or harmless", "cache: healed, or harmless"}
