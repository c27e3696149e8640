"""What strangers may have made of an index, a manifest or a list: each contradiction is one sentence, whoever reads it.

Kinds of damage that ``tools/fuzz_readers.sh`` found; hashes in the manifest are right throughout.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.data import consistency, region
from mae_pipe.data import index as indexes
from mae_pipe.data.index import SampleIndex
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.order import Share
from mae_pipe.data.sample import ENCODINGS
from mae_pipe.data.sources import open_source
from mae_pipe.data.stream import open_stream
from mae_pipe.errors import DataError
from mae_pipe.sharding import build
from mae_pipe.verifying import verify
from tests.test_indexing import make
from tests.test_sources import jpeg, tar_of, write

DATA = recipe.Data(size=16, micro_batch=4, workers=0, mean=(0.5,) * 3, std=(0.5,) * 3)
Columns = dict[str, NDArray[Any]]
Change = Callable[[Columns], None]


@pytest.fixture(scope="module")
def made(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good shards of several kinds. Never changed."""
    folder = tmp_path_factory.mktemp("good")
    for path in image_folder.rglob("*.*"):
        map_ = folder / "pictures" / path.relative_to(image_folder).with_suffix(".png")
        map_.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as picture:
            Image.new("L", picture.size, 1).save(map_)
    lines = "".join(f"{path.relative_to(image_folder)},across;down\n" for path in sorted(image_folder.rglob("*.*")))
    table = write(folder / "labels.csv", "path,labels\n" + lines)
    how: dict[str, Any] = {"catalog": Catalog(), "workers": 1, "per_shard": 9}
    build(image_folder, folder / "tars", **how)
    build(image_folder, folder / "planes", planes=True, **how)
    build(image_folder, folder / "lists", labels=table, **how)
    build(image_folder, folder / "maps", maps=folder / "pictures", **how)
    build(image_folder, folder / "listed", format="files", **how)
    return folder


@pytest.fixture(params=["read whole", "mapped"])
def reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "mapped":
        monkeypatch.setattr(indexes, "MAPPED", 0)
    return str(request.param)


def copied(made: Path, name: str, tmp_path: Path) -> Path:
    shutil.copytree(made / name, tmp_path / "shards")
    return tmp_path / "shards"


def put(path: Path, data: bytes) -> None:
    """Bytes of a file, and their hash in the manifest."""
    path.write_bytes(data)
    about = json.loads((path.parent / "manifest.json").read_bytes())
    for part in [
        part for split in about["splits"].values() for part in (*split["shards"], split["index"], split["marks"])
    ]:
        if part and part["name"] == path.name:
            part["bytes"], part["sha256"] = len(data), hashlib.sha256(data).hexdigest()
    (path.parent / "manifest.json").write_text(json.dumps(about))


def with_index(folder: Path, change: Change) -> None:
    columns = {name: column.copy() for name, column in loaded(folder).columns().items()}
    change(columns)
    put(folder / "train.index.safetensors", save({name: np.ascontiguousarray(one) for name, one in columns.items()}))


def loaded(folder: Path) -> SampleIndex:
    return SampleIndex.load(folder, Manifest.load(folder).splits["train"].index)


def read(folder: Path, labels: Any = "class") -> None:
    """Every image, in views of both kinds."""
    for training in (True, False):
        stream = open_stream(
            folder, "train", DATA, seed=0, share=Share(0, 1, 4), catalog=Catalog(), labels=labels, training=training
        )
        try:
            list(stream.once())
        finally:
            stream.close()


def set_to(name: str, row: int, value: int) -> Change:
    def change(columns: Columns) -> None:
        columns[name][row] = value

    return change


def without(*names: str) -> Change:
    def change(columns: Columns) -> None:
        for name in names:
            del columns[name]

    return change


def cut(name: str) -> Change:
    return lambda columns: columns.update({name: columns[name][:-1]})


def retyped(name: str, kind: str) -> Change:
    return lambda columns: columns.update({name: columns[name].astype(kind)})


STRUCTURE = {
    "a column is missing": without("crc32"),
    "a column of three is missing": without("marks_crc32"),
    "a column is not known": lambda columns: columns.update({"more": np.zeros(24, np.uint32)}),
    "a column is shorter": cut("height"),
    "a column is of another type": retyped("size", "i8"),
    "a column is a table": lambda columns: columns.update({"width": columns["width"].reshape(-1, 1)}),
}


@pytest.mark.parametrize("kind", STRUCTURE)
def test_columns_that_are_not_those_of_an_index_are_damage(made: Path, tmp_path: Path, kind: str, reading: str) -> None:
    folder = copied(made, "tars", tmp_path)
    with_index(folder, STRUCTURE[kind])
    with pytest.raises(DataError, match=r"the sample index .* is damaged"):
        read(folder)
    assert "is damaged" in verify(folder)[0]


HEADERS = {
    "no object": b"[]",
    "a number": b"1.5",
    "nested": b"[" * 200_000,
    "half": b'{"shard": {"dtype": "U32"',
    "negative": b'{"shard": {"dtype": "U32", "shape": [-1], "data_offsets": [4, 0]}}',
    "a huge shape": b'{"shard": {"dtype": "U32", "shape": [4611686018427387904], "data_offsets": [0, 4]}}',
    "not whole": b'{"shard": {"dtype": "U32", "shape": [1.5], "data_offsets": [0, 6]}}',
    "no shape": b'{"shard": {"dtype": "U32", "shape": [], "data_offsets": [0, 4]}}',
    "beyond": b'{"shard": {"dtype": "U32", "shape": [9], "data_offsets": [4, 40]}}',
    "text": b'{"shard": "U32"}',
    "digits": b'{"shard": {"dtype": "U32", "shape": [' + b"9" * 9000 + b'], "data_offsets": [0, 4]}}',
}


@pytest.mark.parametrize("kind", HEADERS)
def test_an_absurd_description_of_columns_is_damage(made: Path, tmp_path: Path, kind: str, reading: str) -> None:
    folder = copied(made, "tars", tmp_path)
    put(folder / "train.index.safetensors", len(HEADERS[kind]).to_bytes(8, "little") + HEADERS[kind] + bytes(8))
    with pytest.raises(DataError, match=r"the sample index .* is damaged"):
        read(folder)


def test_an_absurd_length_of_the_description_is_damage(made: Path, tmp_path: Path, reading: str) -> None:
    folder = copied(made, "tars", tmp_path)
    for length in (1 << 40, (1 << 64) - 1, 0):
        put(folder / "train.index.safetensors", length.to_bytes(8, "little") + bytes(100))
        with pytest.raises(DataError, match=r"the sample index .* is damaged"):
            read(folder)


CONTRADICTIONS = {
    "fewer rows": (
        lambda columns: columns.update({n: c[:-1] for n, c in columns.items() if n != "key_bytes"}),
        "has 23 rows, the manifest says 24",
    ),
    "keys beyond their letters": (set_to("key_ends", -1, 10**9), "does not say which key each image has"),
    "marks beyond their file": (set_to("marks_end", -1, 10**9), "does not say which marks each image has"),
    "no marks": (without("marks_end", "marks_crc32"), "knows nothing of the file of marks"),
    "a shard that is not there": (set_to("shard", 23, 3), "does not say which images each shard holds|in a shard that"),
    "an unknown encoding": (set_to("encoding", 5, 99), "row 5, of an unknown encoding"),
    "no width": (set_to("width", 5, 0), "row 5, of a size that no image has"),
    "a huge height": (set_to("height", 5, 2**32 - 1), "row 5, of a size that no image has"),
    "a label below all": (set_to("label", 5, -2), "row 5, of a label below -1"),
    "a label above all": (set_to("label", 5, 2), "has the label 2, but there are 2 classes"),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_an_index_that_contradicts_itself_is_one_sentence(made: Path, tmp_path: Path, kind: str, reading: str) -> None:
    folder = copied(made, "tars", tmp_path)
    change, words = CONTRADICTIONS[kind]
    with_index(folder, change)
    with pytest.raises(DataError, match=rf"the sample index .*train.index.safetensors .*({words}).*; copy it again"):
        read(folder)
    assert verify(folder)


def test_rows_of_another_shard_are_seen_where_the_index_is_read_whole(made: Path, tmp_path: Path) -> None:
    folder = copied(made, "tars", tmp_path)
    with_index(folder, set_to("shard", 0, 1))
    with pytest.raises(DataError, match="does not say which images each shard holds"):
        read(folder)


@pytest.mark.parametrize("decoder", ["C", "Pillow"])
@pytest.mark.parametrize("row", [0, 1])  # a JPEG, and a PNG
@pytest.mark.parametrize("name", ["width", "height", "encoding"])
def test_a_size_that_is_not_the_images_is_named(
    made: Path, tmp_path: Path, name: str, row: int, decoder: str, reading: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(made, "tars", tmp_path)
    index = loaded(folder)
    row = int(np.flatnonzero(index.encoding == row)[0])
    if decoder == "Pillow":
        monkeypatch.setattr(region, "_native", None)
    other = 2 if name == "encoding" else int(vars(index)[name][row]) - 1
    with_index(folder, set_to(name, row, other))
    with pytest.raises(DataError, match=rf"the image '{index.key(row)}' cannot be decoded \(.*build the shards again"):
        read(folder)


def test_pixels_and_planes_of_another_size_are_seen(made: Path, tmp_path: Path, reading: str) -> None:
    folder = copied(made, "planes", tmp_path)
    with_index(folder, set_to("width", 3, 7))
    with pytest.raises(DataError, match="row 3, of planes, and of another size in bytes"):
        read(folder)
    with_index(copied(made, "planes", tmp_path / "again"), set_to("encoding", 3, ENCODINGS.index("raw")))
    with pytest.raises(DataError, match="row 3, of raw pixels, and of another size in bytes"):
        read(tmp_path / "again" / "shards")


@pytest.mark.parametrize("size", [10**9, 1 << 40, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("name", ["offset", "size"])
@pytest.mark.parametrize("format", ["tars", "listed"])
def test_a_place_beyond_the_file_is_refused_before_memory_is_asked_for(
    made: Path, tmp_path: Path, format: str, name: str, size: int, reading: str
) -> None:
    folder = copied(made, format, tmp_path)
    with_index(folder, set_to(name, 4, size))
    with pytest.raises(DataError, match=r"ends before byte|has changed since it was listed"):
        read(folder)
    assert "1 of its 9 images is damaged" in verify(folder)[0]


def test_lists_of_classes_that_contradict_are_a_sentence(made: Path, tmp_path: Path, reading: str) -> None:
    folder = copied(made, "lists", tmp_path)
    with_index(folder, set_to("labels_flat", 3, 2))
    with pytest.raises(DataError, match="has the label 2"):
        read(folder, "multi")
    with_index(folder, set_to("labels_end", -1, 999))
    with pytest.raises(DataError, match="does not say which classes each image has"):
        read(folder, "multi")


def test_a_map_of_another_size_is_named(made: Path, tmp_path: Path, reading: str) -> None:
    folder = copied(made, "maps", tmp_path)
    index = loaded(folder)
    assert index.map_offset is not None
    tar, at = folder / "train-000000.tar", int(index.map_offset[2])
    data = bytearray(tar.read_bytes())
    data[at + 16 : at + 20] = struct.pack(">I", 7)  # the width in a PNG's header, and the checksum of that
    data[at + 29 : at + 33] = struct.pack(">I", zlib.crc32(data[at + 12 : at + 29]))
    put(tar, bytes(data))
    placed = index.placed(2).map
    assert placed is not None
    sum_ = zlib.crc32(data[placed.offset : placed.offset + placed.size])
    with_index(folder, set_to("map_crc32", 2, sum_))
    with pytest.raises(DataError, match=rf"the image '{index.key(2)}' cannot be decoded \(its map has 7 x"):
        read(folder, "map")


def test_an_image_that_was_damaged_before_it_was_indexed_is_named(made: Path, tmp_path: Path) -> None:
    folder = copied(made, "tars", tmp_path)
    index = loaded(folder)
    row = int(np.flatnonzero(index.encoding == 1)[0])
    placed, tar = index.placed(row), folder / f"train-00000{int(index.shard[row])}.tar"
    data = bytearray(tar.read_bytes())
    data[placed.offset + 60 : placed.offset + placed.size] = bytes(placed.size - 60)
    put(tar, bytes(data))
    with_index(folder, set_to("crc32", row, zlib.crc32(data[placed.offset : placed.offset + placed.size])))
    with pytest.raises(DataError, match=rf"the image '{index.key(row)}' cannot be decoded"):
        read(folder)


MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "negative bytes": lambda about: about["splits"]["train"]["shards"][0].update(bytes=-1),
    "negative images": lambda about: about["splits"]["train"].update(images=-24),
    "more than there are": lambda about: about["splits"]["train"]["index"].update(images=25),
    "a number beyond all": lambda about: about["splits"]["train"]["shards"][0].update(images=10**400),
    "no shards": lambda about: about["splits"]["train"].update(shards=[]),
    "a shard twice": lambda about: about["splits"]["train"]["shards"].append(about["splits"]["train"]["shards"][0]),
    "a zero in a name": lambda about: about["splits"]["train"]["index"].update(name="a\0b"),
    "a long name": lambda about: about["splits"]["train"]["index"].update(name="x" * 5000),
    "a name of too many bytes": lambda about: about["splits"]["train"]["index"].update(name="\u4e2d" * 200),
    "a long base": lambda about: about.update(base="x" * 300),
    "a long format": lambda about: about.update(format="x" * 5000),
    "no channels": lambda about: about.update(channels=0),
    "a split of many letters": lambda about: about["splits"].update({"x" * 5000: about["splits"]["train"]}),
    "fewer classes": lambda about: about.update(classes=["across"]),
    "marks of another size": lambda about: about["splits"]["train"]["marks"].update(bytes=3),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_an_absurd_manifest_is_one_sentence(made: Path, tmp_path: Path, kind: str) -> None:
    folder = copied(made, "tars", tmp_path)
    about = json.loads((folder / "manifest.json").read_bytes())
    MANIFESTS[kind](about)
    (folder / "manifest.json").write_text(json.dumps(about))
    with pytest.raises(DataError) as raised:
        read(folder)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000
    with contextlib.suppress(DataError):
        assert verify(folder)


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"version":' + "9" * 9000 + "}", "null", "", "\ufeff{}", '{"a":' * 99_999]
)
def test_text_that_is_no_manifest_is_one_sentence(made: Path, tmp_path: Path, text: str) -> None:
    folder = copied(made, "tars", tmp_path)
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"manifest.json is not a manifest: .*; build the shards again"):
        read(folder)


@pytest.mark.parametrize(
    "entry",
    [
        5,
        "text",
        {"a": 1},
        [1, 2, 3],
        [["a"], 1, 2],
        ["a\0b", 1, 2],
        ["\ud800", 1, 2],
        ["/dev/zero", 0, 0],
        ["/", 1.5, 2],
        [None],
    ],
)
def test_a_list_of_files_whose_entries_are_none_is_a_sentence(made: Path, tmp_path: Path, entry: Any) -> None:
    folder = copied(made, "listed", tmp_path)
    path = folder / "train-000000.files"
    whole = path.read_bytes()
    length = int.from_bytes(whole[-16:-8], "little")
    begin = len(whole) - 16 - length
    listed = json.loads(whole[begin:-16])
    for row in range(len(listed)):
        listed[row] = entry
    text = json.dumps(listed).encode()
    put(path, whole[:begin] + text + len(text).to_bytes(8, "little") + whole[-8:])
    with pytest.raises(DataError, match=r"lists no image|cannot be read any more|has changed since it was listed"):
        read(folder)
    assert "images are damaged" in verify(folder)[0]


def test_a_nested_list_of_files_is_a_sentence(made: Path, tmp_path: Path) -> None:
    folder = copied(made, "listed", tmp_path)
    text = b"[" * 200_000
    put(folder / "train-000000.files", text + len(text).to_bytes(8, "little") + b"MAEFILES")
    with pytest.raises(DataError, match="its list is damaged"):
        read(folder)


def test_a_zip_whose_places_lie_before_it_has_no_origins(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("a/1.jpg", jpeg(1))
    data = path.read_bytes()
    end = data.rindex(b"PK\5\6")
    path.write_bytes(data[: end + 16] + struct.pack("<I", 10**6) + data[end + 20 :])  # the directory lies further on
    source = open_source(path, "zip", Catalog(), {})
    assert source.origin("a/1.jpg") is None
    source.close()


def test_text_that_is_no_unicode_makes_no_manifest_that_cannot_be_read(tmp_path: Path) -> None:
    files = {"a/1.jpg": jpeg(1), "a/1.json": b'{"label": "\\ud800"}', "a/\udcfe.\udcff": b"x"}
    make([write(tmp_path / "x.tar", tar_of(files))], tmp_path / "index")
    made = Manifest.load(tmp_path / "index")
    assert made.classes == ["\\ud800"]
    assert [entry.reason for entry in made.splits["train"].refused] == ["no image beside .\\xff"]
    assert verify(tmp_path / "index") == []


def test_a_label_beyond_all_classes_is_a_sentence_and_not_a_list_of_a_million_names(tmp_path: Path) -> None:
    write(tmp_path / "in" / "1.jpg", jpeg(1))
    table = write(tmp_path / "in" / "list.csv", "path,label\n1.jpg,9000000\n")
    with pytest.raises(DataError, match="has the label 9000000; expected a class's number"):
        build(table, tmp_path / "out", catalog=Catalog(), workers=1)


def test_all_rows_of_a_mapped_index_are_looked_at_by_verify(made: Path, tmp_path: Path) -> None:
    folder = copied(made, "tars", tmp_path)
    index, split = loaded(folder), Manifest.load(folder).splits["train"]
    assert consistency.wrong(index, split, Manifest.load(folder), whole=True) == ""
    with_index(folder, set_to("key_ends", 3, 10**6))
    assert verify(folder) == ["train.index.safetensors does not say which key each image has"]
