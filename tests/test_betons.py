"""Betons of ffcv's own writer are read without ffcv: checked, indexed where they lie, and trained on as ours are."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from mae_pipe import recipe, testing
from mae_pipe.catalog import Catalog
from mae_pipe.cli import _group
from mae_pipe.data import decode, inplace, region
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.order import Order, Share
from mae_pipe.data.shelf import Shelf
from mae_pipe.data.sources import open_source, recognised
from mae_pipe.data.stream import open_stream
from mae_pipe.direct import shards_of
from mae_pipe.errors import DataError
from mae_pipe.sharding import build
from mae_pipe.verifying import verify
from tests.test_indexing import make, rows
from tests.test_sources import jpeg, write
from tests.workers.plain_beton import plain_beton

WRITER = Path(__file__).parent / "workers" / "write_betons.py"
MODES = ["jpg", "raw", "smart", "proportion"]
SAMPLES = 23
HEADER, FIELD = 24, 1041  # bytes
ALONE = Share(0, 1, 4)
DATA = recipe.Data(size=16, micro_batch=4, workers=0, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(scope="module")
def betons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By mode: a beton, and beside it the bytes that ffcv's reader finds in it. Never changed."""
    pytest.importorskip("ffcv", reason="ffcv is not installed")
    folder = tmp_path_factory.mktemp("betons")
    done = subprocess.run([sys.executable, str(WRITER), str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def theirs(path: Path) -> list[tuple[str, bytes]]:
    """The mode and the bytes of every image, as ffcv finds them."""
    with np.load(path.with_suffix(".npz")) as kept:
        found = {int(name.partition("-")[0]): (name.partition("-")[2], kept[name].tobytes()) for name in kept}
    return [found[number] for number in range(SAMPLES)]


def batches(folder: Path, share: Share = ALONE, start: int = 0, count: int = 6) -> list[torch.Tensor]:
    stream = open_stream(folder, "train", DATA, seed=3, share=share, catalog=Catalog())
    found = [
        part
        for _, batch in zip(range(count), stream.batches(start), strict=False)
        for part in (batch.pixels, batch.labels)
    ]
    stream.close()
    return found


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_every_pixel_is_the_one_that_pillow_decodes_from_the_betons_own_bytes(
    betons: Path, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make([betons / f"{mode}.beton"], tmp_path / "index")
    assert (made.format, made.splits["train"].images, made.splits["train"].refused) == ("ffcv", SAMPLES, [])
    assert made.classes == ["0", "1", "2"]
    index = rows(tmp_path / "index")
    assert index.label.tolist() == [number % 3 for number in range(SAMPLES)]
    shelf = Shelf(tmp_path / "index", "train", Catalog())
    kinds = set()
    for row, (kind, data) in enumerate(theirs(betons / f"{mode}.beton")):
        stored = shelf.read(row)
        assert bytes(stored.data) == data
        assert stored.encoding == {"jpg": "jpeg", "raw": "raw"}[kind]
        size = stored.width, stored.height
        seen = Image.open(io.BytesIO(data)) if kind == "jpg" else Image.frombytes("RGB", size, data)
        assert seen.size == size
        assert np.array_equal(np.asarray(decode.picture(stored)), np.asarray(seen.convert("RGB")))
        assert index.key(row) == f"{mode}/{row:08d}"
        kinds.add(kind)
    shelf.close()
    assert kinds == {"jpg": {"jpg"}, "raw": {"raw"}}.get(mode, {"jpg", "raw"})
    fast = batches(tmp_path / "index")
    monkeypatch.setattr(region, "_native", None)
    assert same(fast, batches(tmp_path / "index"))
    assert verify(tmp_path / "index") == []


def test_an_index_gives_the_batches_of_shards_that_are_written_from_the_beton(betons: Path, tmp_path: Path) -> None:
    make([betons / "smart.beton"], tmp_path / "index")
    for format in ("webdataset", "ffcv"):
        build(betons / "smart.beton", tmp_path / format, format=format, catalog=Catalog(), workers=1, per_shard=10)
        assert same(batches(tmp_path / "index"), batches(tmp_path / format))
    converted = [Manifest.load(tmp_path / name).splits["train"].converted for name in ("webdataset", "ffcv")]
    assert converted == [{"raw pixels": sum(kind == "raw" for kind, _ in theirs(betons / "smart.beton"))}, {}]


def test_training_straight_from_a_beton_reads_the_same(
    betons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make([betons / "smart.beton"], tmp_path / "index")
    straight = shards_of(betons / "smart.beton", Catalog())
    assert same(batches(tmp_path / "index"), batches(straight))
    assert sum(path.stat().st_size for path in straight.glob("*.files")) < 5000  # a list, and no image


def test_order_resume_and_ranks_are_those_of_any_shards(betons: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    make([betons / "jpg.beton"], folder)
    whole = batches(folder, Share(0, 1, 8), count=7)  # across the end of an epoch
    assert same(batches(folder, Share(0, 1, 8), start=24, count=4), whole[6:])
    ranks = [batches(folder, Share(rank, 2, 4), count=7) for rank in range(2)]
    assert same([torch.cat(both) for both in zip(*ranks, strict=True)], whole)
    labels = torch.cat(whole[1::2])
    numbers = Order(SAMPLES, 3).at(np.arange(len(labels)))
    assert labels.tolist() == (numbers % 3).tolist()
    assert sorted(numbers[:SAMPLES].tolist()) == list(range(SAMPLES))


def test_several_betons_and_their_splits_are_one_index(betons: Path, tmp_path: Path) -> None:
    for name in ("a-train", "b-train", "b-val"):
        write(tmp_path / "in" / f"{name}.beton", (betons / "jpg.beton").read_bytes())
    made = make([tmp_path / "in"], tmp_path / "in" / "index", workers=2)
    assert {name: split.images for name, split in made.splits.items()} == {"train": 2 * SAMPLES, "val": SAMPLES}
    assert [shard.name for shard in made.splits["train"].shards] == ["a-train.beton", "b-train.beton"]
    assert made.base == ".."
    assert verify(tmp_path / "in" / "index") == []
    write(tmp_path / "in" / "c.tar", b"")
    with pytest.raises(DataError, match="index tars and betons one after the other"):
        make([tmp_path / "in"], tmp_path / "mixed")


def test_a_large_beton_is_indexed_by_several_processes_in_pieces(
    betons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray((betons / "smart.beton").read_bytes())
    for number in range(5):  # nothing of the first piece can be used
        data[HEADER + 2 * FIELD + 24 * number] = 9
    for name in ("x", "y"):
        write(tmp_path / "in" / f"{name}.beton", bytes(data))
    whole = make([tmp_path / "in"], tmp_path / "whole")
    monkeypatch.setattr(inplace, "PIECE", 5)
    assert make([tmp_path / "in"], tmp_path / "pieces", workers=2) == whole
    for name in ("train.index.safetensors", "train.marks", "manifest.json"):
        assert (tmp_path / "pieces" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [shard.images for shard in whole.splits["train"].shards] == [18, 18]
    steps: list[int] = []

    def stop(done: int, refused: int, total: int) -> None:
        steps.append(done)
        if len(steps) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make([tmp_path / "in"], tmp_path / "again", progress=stop)
    steps = [0] * 9
    assert make([tmp_path / "in"], tmp_path / "again", progress=stop) == whole
    assert steps[9] == 5  # images, at once


def test_fields_are_found_by_kind_and_by_name(betons: Path, tmp_path: Path) -> None:
    path = betons / "several.beton"
    made = make([path], tmp_path / "lists")
    assert made.labelling == "multi"
    assert [rows(tmp_path / "lists").labels(row).tolist() for row in range(5)] == [[], [0], [0, 1], [0, 1, 2], []]
    make([path], tmp_path / "numbers", label="klass")
    assert rows(tmp_path / "numbers").label.tolist() == [number % 3 for number in range(SAMPLES)]
    assert not make([path], tmp_path / "none", label="none").splits["train"].labelled
    with pytest.raises(DataError, match=r"no field 'score' of labels; it has picture \(image\), klass \(int\), labels"):
        make([path], tmp_path / "no", label="score")
    with pytest.raises(DataError, match="has no field 'klass' of images"):
        make([path], tmp_path / "no", image="klass")
    with pytest.raises(DataError, match=r"none of the images can be used; .*zero bytes"):
        make([path], tmp_path / "no", image="caption", label="none")


def test_our_own_betons_are_a_source_too(image_folder: Path, betons: Path, tmp_path: Path) -> None:
    build(image_folder, tmp_path / "ours", format="ffcv", catalog=Catalog(), workers=1, per_shard=10)
    assert recognised(tmp_path / "ours", Catalog()) == "beton"
    build(tmp_path / "ours", tmp_path / "tars", catalog=Catalog(), workers=1, per_shard=10)
    assert Manifest.load(tmp_path / "tars").classes == ["across", "down"]
    assert same(batches(tmp_path / "ours"), batches(tmp_path / "tars"))


def test_image_files_in_a_field_of_bytes_are_images(betons: Path, tmp_path: Path) -> None:
    """The writer of ffcv's own that many used for their JPEG files as they are."""
    files = [jpeg(number) for number in range(4)]
    write(
        tmp_path / "x.beton", plain_beton([("image", 3), ("label", 1)], [(data, n - 1) for n, data in enumerate(files)])
    )
    make([tmp_path / "x.beton"], tmp_path / "index", label="none")
    shelf = Shelf(tmp_path / "index", "train", Catalog())
    assert [bytes(shelf.read(row).data) for row in range(4)] == files
    shelf.close()
    made = make([tmp_path / "x.beton"], tmp_path / "labelled")
    assert [entry.reason for entry in made.splits["train"].refused] == ["no label"]  # -1


def test_a_corrupt_jpeg_is_named_where_ffcv_shows_black(betons: Path, tmp_path: Path) -> None:
    data = bytearray((betons / "jpg.beton").read_bytes())
    start = data.index(theirs(betons / "jpg.beton")[5][1])
    data[start : start + 300] = bytes(300)
    end = data.index(theirs(betons / "jpg.beton")[7][1]) + len(theirs(betons / "jpg.beton")[7][1])
    data[end - 200 : end] = bytes(200)
    path = write(tmp_path / "x.beton", bytes(data))
    made = make([path], tmp_path / "index")
    reasons = {entry.path: entry.reason for entry in made.splits["train"].refused}
    assert set(reasons) == {"x/00000005", "x/00000007"}
    assert reasons["x/00000005"] == "not an image, or its header is damaged"


def test_a_jpeg_of_another_size_than_the_table_says_is_named(betons: Path, tmp_path: Path) -> None:
    data = bytearray((betons / "jpg.beton").read_bytes())
    record = HEADER + 2 * FIELD + 3 * 24  # mode, width, height, pointer, and the label at a multiple of 8
    data[record + 1 : record + 3] = struct.pack("<H", 999)
    made = make([write(tmp_path / "x.beton", bytes(data))], tmp_path / "index")
    ((path, reason),) = [(entry.path, entry.reason) for entry in made.splits["train"].refused]
    assert path == "x/00000003"
    assert re.fullmatch(r"a JPEG of \d+ x \d+ pixels, where the beton says 999 x \d+", reason)
    data = bytearray((betons / "raw.beton").read_bytes())
    data[record : record + 3] = struct.pack("<BH", 1, 999)
    data[record + 24] = 7
    made = make([write(tmp_path / "y.beton", bytes(data))], tmp_path / "index2")
    assert "raw pixels of 999 x" in made.splits["train"].refused[0].reason
    assert "stored in the mode 7" in made.splits["train"].refused[1].reason


def changed(at: int, form: str, *values: int) -> Callable[[bytes], bytes]:
    packed = struct.pack("<" + form, *values)
    return lambda data: data[:at] + packed + data[at + len(packed) :]


def table(row: int, form: str, *values: int) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        at = int.from_bytes(data[16:24], "little") + 24 * row
        return changed(at, form, *values)(data)

    return apply


def swapped(data: bytes) -> bytes:
    """The pointers of two samples exchanged: ffcv shows each with the other's label."""
    first = HEADER + 2 * FIELD + 5
    a, b = data[first : first + 8], data[first + 24 : first + 32]
    return data[:first] + b + data[first + 8 : first + 24] + a + data[first + 32 :]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: b"", "it has 0 bytes, fewer than a header"),
        (lambda data: data[:-24], "its tables contradict each other about 'image'"),
        (lambda data: data[:-7], "it is cut or damaged: its table has"),
        (lambda data: data[: len(data) // 2], "it is cut: its table should begin at byte"),
        (lambda data: data[:3000], "it is cut: its table should begin"),
        (lambda data: data[:2400], "it is cut, or claims more samples than it has: 23 in 2,400 bytes"),
        (lambda data: b"\xff" * 4000, "it says version 65535, not 2"),
        (lambda data: data + data, "it is cut or damaged: its table has"),
        (changed(0, "H", 3), "it says version 3, not 2"),
        (changed(2, "H", 0), "it claims 0 fields"),
        (changed(2, "H", 65535), "it claims 65535 fields"),
        (changed(4, "I", 3), "its pages have 3 bytes"),
        (changed(8, "Q", 0), "it holds no samples"),
        (changed(8, "Q", 1 << 40), "claims more samples than it has: 1,099,511,627,776"),
        (changed(8, "Q", (1 << 64) - 1), "claims more samples"),
        (changed(8, "Q", 22), "damaged"),
        (changed(16, "Q", 0), "it has no table: its writer was stopped before the end"),
        (changed(16, "Q", 100), "its table should begin at byte 100"),
        (changed(16, "Q", (1 << 64) - 8), "its table should begin at byte"),
        (changed(HEADER, "B", 255), "'image' has a type of its maker's own"),
        (changed(HEADER, "B", 77), "'image' has the unknown type 77"),
        (changed(HEADER + 1, "B", 0), "a field has the name b''"),
        (changed(HEADER + FIELD + 1, "6s", b"image"), "two fields have the name 'image'"),  # type: ignore[arg-type]
        (table(2, "QQQ", 1, 8, 40), "its table is damaged: it has 40 bytes of sample 1 at byte 8"),
        (table(2, "QQQ", 1, 1 << 63, 40), "its table is damaged"),
        (table(2, "QQQ", 1, 2 << 20, 1 << 63), "its table is damaged"),
        (table(2, "QQQ", 1 << 50, 2 << 20, 4), "its table is damaged"),
        (table(2, "QQQ", 3, (2 << 20) + 5, 4), "two pieces of data overlap"),
        (swapped, "its tables contradict each other about 'image' of sample 0"),
    ],
)
def test_a_damaged_or_lying_beton_is_a_sentence(
    betons: Path, tmp_path: Path, damage: Callable[[bytes], bytes], words: str
) -> None:
    path = write(tmp_path / "x.beton", damage((betons / "jpg.beton").read_bytes()))
    assert recognised(path, Catalog()) == "beton"
    with pytest.raises(DataError, match=rf"x.beton cannot be read as a beton: .*{re.escape(words)}"):
        make([path], tmp_path / "index")
    with pytest.raises(DataError, match=rf"x.beton cannot be read .*{re.escape(words)}.*mae-pipe verify"):
        Catalog().build("shards", "ffcv", {}).open(path)


def test_a_beton_that_changes_after_it_was_indexed_is_noticed(betons: Path, tmp_path: Path) -> None:
    whole = (betons / "jpg.beton").read_bytes()
    path = write(tmp_path / "x.beton", whole)
    make([path], tmp_path / "index")
    place = rows(tmp_path / "index").placed(4)
    path.write_bytes(whole[: place.offset + 9] + b"\0\0" + whole[place.offset + 11 :])
    assert verify(tmp_path / "index")[0].endswith("1 of its 23 images is damaged: x/00000004")
    with pytest.raises(DataError, match=r"x.beton: the image 'x/00000004' is damaged"):
        batches(tmp_path / "index")
    path.write_bytes(whole[:-2000])
    with pytest.raises(DataError, match=r"x.beton is missing or cut short"):
        batches(tmp_path / "index")


def test_reading_betons_needs_no_ffcv(betons: Path, tmp_path: Path) -> None:
    script = "import sys; sys.modules['ffcv'] = None\nfrom mae_pipe.cli import main; main()"
    for command in (
        ["index", str(betons / "smart.beton"), "--out", str(tmp_path / "index")],
        ["verify", str(tmp_path / "index")],
    ):
        done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]


def test_the_source_keeps_its_contract_and_the_command_says_what_it_takes(betons: Path, tmp_path: Path) -> None:
    source = open_source(betons / "smart.beton", "beton", Catalog(), {})
    testing.check_source(source)
    for name in ("a", "b"):
        write(tmp_path / "in" / f"{name}.beton", (betons / "jpg.beton").read_bytes())
    folder = open_source(tmp_path / "in", recognised(tmp_path / "in", Catalog()), Catalog(), {})
    testing.check_source(folder)
    source.close()
    folder.close()
    done = CliRunner().invoke(_group, ["index", str(tmp_path / "in"), "--out", str(tmp_path / "index"), "--no-decode"])
    assert done.exit_code == 0, done.output
    assert "train: 46 images of 3 classes in 2 ffcv shards" in done.output
    assert ".beton" in CliRunner().invoke(_group, ["index", "--help"]).output
