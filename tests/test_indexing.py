"""Shards of others are indexed where they lie, and are then read, checked and trained on as our own are."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from click.testing import CliRunner
from PIL import Image

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.cli import _group
from mae_pipe.data.index import SampleIndex
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.order import Share
from mae_pipe.data.stream import open_stream
from mae_pipe.errors import DataError
from mae_pipe.indexing import index
from mae_pipe.sharding import build
from mae_pipe.verifying import verify
from tests.test_formats import THEIR_FILES
from tests.test_sources import jpeg, shard_of, tar_of, write

DATA = recipe.Data(size=16, micro_batch=4, workers=0, mean=(0.5,) * 3, std=(0.5,) * 3)


def make(given: list[Path], out: Path, **options: Any) -> Manifest:
    return index([str(path) for path in given], out, **{"catalog": Catalog(), "workers": 1, **options})


def rows(folder: Path, split: str = "train") -> SampleIndex:
    return SampleIndex.load(folder, Manifest.load(folder).splits[split].index)


def batches(folder: Path, count: int = 6) -> list[torch.Tensor]:
    stream = open_stream(folder, "train", DATA, seed=3, share=Share(0, 1, 4), catalog=Catalog())
    found = [
        pixels
        for _, batch in zip(range(count), stream.batches(), strict=False)
        for pixels in (batch.pixels, batch.labels)
    ]
    stream.close()
    return found


@pytest.fixture
def ours(image_folder: Path, tmp_path: Path) -> Path:
    build(image_folder, tmp_path / "ours", catalog=Catalog(), workers=1, per_shard=7)
    return tmp_path / "ours"


@pytest.fixture
def theirs(ours: Path, tmp_path: Path) -> Iterator[Path]:
    """The same tars without what we write beside them; they are never changed."""
    for path in ours.glob("*.tar"):
        write(tmp_path / "theirs" / path.name, path.read_bytes())
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "theirs").glob("*.tar")}
    yield tmp_path / "theirs"
    assert all(path.exists() for path in before)


def test_an_index_of_our_own_tars_is_the_one_that_we_wrote(ours: Path, theirs: Path, tmp_path: Path) -> None:
    names = write(tmp_path / "names.txt", "across\ndown\n")
    made = make([theirs], tmp_path / "index", class_names=names, workers=2)
    for name, column in rows(ours).columns().items():
        assert np.array_equal(column, rows(tmp_path / "index").columns()[name]), name
    whole = Manifest.load(ours)
    assert made.splits["train"].shards == whole.splits["train"].shards
    assert made.splits["train"].statistics == whole.splits["train"].statistics
    assert made.classes == whole.classes
    assert made.base == str(theirs)
    assert (tmp_path / "index" / "train.marks").read_bytes() == (ours / "train.marks").read_bytes()


def test_training_on_an_index_reads_the_same_batches(ours: Path, theirs: Path, tmp_path: Path) -> None:
    make([theirs], tmp_path / "index")
    for ours_, theirs_ in zip(batches(ours), batches(tmp_path / "index"), strict=True):
        assert torch.equal(ours_, theirs_)
    assert verify(tmp_path / "index") == []


def test_no_byte_of_theirs_is_written_even_to_replace_an_index(theirs: Path, tmp_path: Path) -> None:
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in theirs.iterdir()}
    make([theirs], theirs / "index")
    make([theirs / "train-000000.tar"], theirs / "index", overwrite=True)
    make([theirs], theirs / "index", overwrite=True, marks=False)
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in theirs.glob("*.tar")} == before
    assert sorted(path.name for path in (theirs / "index").iterdir()) == ["manifest.json", "train.index.safetensors"]
    with pytest.raises(DataError, match="already holds finished"):
        make([theirs], theirs / "index")
    build_into = {"catalog": Catalog(), "workers": 1, "splits": ["val"]}
    write(tmp_path / "in" / "a.jpg", jpeg(1))
    with pytest.raises(DataError, match="it is the index of shards that lie elsewhere"):
        build(tmp_path / "in", theirs / "index", **build_into)  # type: ignore[arg-type]


def test_an_index_inside_the_folder_of_the_tars_moves_with_it(theirs: Path, tmp_path: Path) -> None:
    made = make([theirs], theirs / "index")
    assert made.base == ".."
    theirs.rename(tmp_path / "moved")
    assert verify(tmp_path / "moved" / "index") == []
    (tmp_path / "moved").rename(theirs)


def test_tars_of_several_folders_and_splits_are_one_index(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x-train-0.tar", tar_of(shard_of(3)))
    write(tmp_path / "b" / "x-train-0.tar", tar_of(shard_of(3, first=1)))  # the same name, and two of the same keys
    write(tmp_path / "b" / "x-val-0.tar", tar_of(shard_of(2)))
    made = make([tmp_path / "b", tmp_path / "a" / "x-train-0.tar", tmp_path / "b"], tmp_path / "index")
    assert [shard.name for shard in made.splits["train"].shards] == ["a/x-train-0.tar", "b/x-train-0.tar"]
    assert [shard.images for shard in made.splits["val"].shards] == [2]
    keys = [rows(tmp_path / "index").key(row) for row in range(6)]
    assert keys == ["a/0000", "a/0001", "a/0002", "a/0001-2", "a/0002-2", "a/0003"]
    assert verify(tmp_path / "index") == []


def test_what_would_have_to_be_converted_is_left_out_by_name(tmp_path: Path) -> None:
    def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
        out = io.BytesIO()
        image.save(out, kind, **options)
        return out.getvalue()

    turned = Image.Exif()
    turned[0x0112] = 6
    pixels = Image.new("RGB", (20, 10), "red")
    files = {
        "rgb.jpg": jpeg(1),
        "grey.jpg": saved(pixels.convert("L"), "JPEG"),
        "wrong.png": jpeg(2),  # a JPEG whatever it is called
        "cmyk.jpg": saved(pixels.convert("CMYK"), "JPEG"),
        "turned.jpg": saved(pixels, "JPEG", exif=turned),
        "clear.png": saved(pixels.convert("RGBA"), "PNG"),
        "moving.gif": saved(pixels, "GIF"),
        "cut.jpg": jpeg(3, (200, 160))[:-200],
        "only.txt": b"x",
    }
    write(tmp_path / "x.tar", tar_of(files))
    for decode in (True, False):
        made = make([tmp_path / "x.tar"], tmp_path / f"index-{decode}", decode=decode)
        reasons = {entry.path: entry.reason for entry in made.splits["train"].refused}
        assert reasons["x.tar/only"] == "no image beside .txt"
        assert set(reasons) == {"x.tar/only", "cmyk.jpg", "turned.jpg", "clear.png", "moving.gif"} | (
            {"cut.jpg"} if decode else set()
        )
        assert "to be converted: rotated" in reasons["turned.jpg"]
        assert [rows(tmp_path / f"index-{decode}").key(n) for n in range(3)] == ["rgb", "grey", "wrong"]
    assert rows(tmp_path / "index-True").encoding.tolist() == [0, 0, 0]


@THEIR_FILES
def test_what_img2dataset_and_webdatasets_own_writer_make_is_indexed(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "00000.tar")) as sink:
        for number in range(4):
            about = {"key": f"{number:09d}", "status": "success", "width": 20, "caption": "a"}
            sink.write({"__key__": f"{number:09d}", "jpg": jpeg(number), "txt": "a caption", "json": about})
    made = make([tmp_path / "00000.tar"], tmp_path / "index")
    assert made.splits["train"].images == 4
    assert not made.splits["train"].labelled
    labelled = make([tmp_path / "00000.tar"], tmp_path / "index2", label="json:width")
    assert set(rows(tmp_path / "index2").label.tolist()) == {20}
    assert labelled.splits["train"].labelled
    found = list(webdataset.WebDataset(str(tmp_path / "00000.tar"), shardshuffle=False))
    stored = rows(tmp_path / "index")
    data = (tmp_path / "00000.tar").read_bytes()
    for number, sample in enumerate(found):
        start, size = int(stored.offset[number]), int(stored.size[number])
        assert data[start : start + size] == sample["jpg"]
        assert stored.key(number) == sample["__key__"]


def test_a_tar_of_class_folders_has_the_labels_of_its_folders(tmp_path: Path) -> None:
    write(
        tmp_path / "x.tar", tar_of({"dog/1.jpg": jpeg(1), "cat/1.jpg": jpeg(2), "cat/2.jpg": jpeg(3), "4.jpg": jpeg(4)})
    )
    made = make([tmp_path / "x.tar"], tmp_path / "index", label="folder")
    assert made.classes == ["cat", "dog"]
    assert rows(tmp_path / "index").label.tolist() == [1, 0, 0]
    assert [(entry.path, entry.reason) for entry in made.splits["train"].refused] == [("4.jpg", "no label")]


def test_a_tar_that_changes_after_it_was_indexed_is_noticed(theirs: Path, tmp_path: Path) -> None:
    make([theirs], tmp_path / "index")
    path = theirs / "train-000001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:])
    assert "train-000001.tar has other bytes" in verify(tmp_path / "index")[0]
    path.write_bytes(whole[:-512])
    with pytest.raises(DataError, match=r"train-000001.tar is missing or cut short"):
        batches(tmp_path / "index", 8)
    path.unlink()
    with pytest.raises(DataError, match=f"shards of 'train' are missing in {theirs}"):
        batches(tmp_path / "index")
    path.write_bytes(whole)


def test_a_killed_index_goes_on_where_it_was(theirs: Path, tmp_path: Path) -> None:
    count = [0]

    def stop(done: int, refused: int, total: int) -> None:
        count[0] += 1
        if count[0] == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make([theirs], tmp_path / "index", progress=stop)
    steps: list[int] = []
    make([theirs], tmp_path / "index", progress=lambda done, refused, total: steps.append(done))
    assert steps[0] == 7  # the first shard, at once
    make([theirs], tmp_path / "whole")
    assert (tmp_path / "index" / "manifest.json").read_bytes() == (tmp_path / "whole" / "manifest.json").read_bytes()


def test_a_cut_tar_ends_the_command_with_its_name(tmp_path: Path) -> None:
    whole = tar_of(shard_of())
    end = len(whole.rstrip(b"\0"))
    path = write(tmp_path / "x.tar", whole[: end + -end % tarfile.BLOCKSIZE])
    done = CliRunner().invoke(_group, ["index", str(path), "--out", str(tmp_path / "index")])
    assert isinstance(done.exception, DataError)
    assert f"{path} cannot be read as a tar: it ends at byte" in str(done.exception)
    assert not (tmp_path / "index").exists()


def test_the_command_indexes_and_says_what_comes_next(theirs: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    done = CliRunner().invoke(_group, ["index", str(theirs), "--out", str(out), "--workers", "1", "--no-decode"])
    assert done.exit_code == 0, done.output
    assert "train: 24 images of 2 classes in 4 webdataset shards" in done.output
    assert f"next: mae-pipe pretrain RECIPE --shards {out} --out RUN" in done.output
    assert json.loads((out / "manifest.json").read_text())["options"]["train"]["decoded"] == "headers"


def test_a_base_elsewhere_is_kept_and_what_is_not_there_is_a_sentence(theirs: Path, tmp_path: Path) -> None:
    made = make([theirs], tmp_path / "index", base="https://example.org/set")
    assert made.base == "https://example.org/set"
    assert Manifest.load(tmp_path / "index").base == "https://example.org/set"
    with pytest.raises(DataError, match="is not there"):
        make([tmp_path / "no.tar"], tmp_path / "b")
