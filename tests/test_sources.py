"""Sources: every way that images come in gives the shards that the unpacked folder gives, and damage is a sentence."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
from click.testing import CliRunner
from PIL import Image
from torchvision.datasets import ImageFolder

from mae_pipe import testing
from mae_pipe.catalog import Catalog
from mae_pipe.cli import _group
from mae_pipe.data.index import SampleIndex
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.refusal import Refusal
from mae_pipe.data.scan import scan
from mae_pipe.data.sources import Asked, ImageSource, open_source, recognised
from mae_pipe.errors import DataError, MaePipeError, PluginError
from mae_pipe.sharding import build
from mae_pipe.verifying import verify
from tests.workers.plain_beton import plain_beton

CATALOG = Catalog()
SYNSETS = ("n03", "n01", "n02")  # by ILSVRC2012 number 1, 2, 3: not sorted


def jpeg(seed: int, size: tuple[int, int] = (20, 16)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(out, "JPEG")
    return out.getvalue()


def tar_of(files: dict[str, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def make(source: Path, out: Path, **options: Any) -> Manifest:
    return build(source, out, **{"catalog": Catalog(), "workers": 1, "per_shard": 4, **options})


def shards(folder: Path) -> dict[str, bytes]:
    """All files but the manifest, which names the source."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "manifest.json"}


def rows(folder: Path, split: str = "train") -> list[tuple[str, int]]:
    index = SampleIndex.load(folder, Manifest.load(folder).splits[split].index)
    return [(index.key(row), int(index.label[row])) for row in range(len(index))]


def listed(path: Path, **options: Any) -> list[tuple[str, str, Any, str]]:
    source = open_source(path, recognised(path, CATALOG), CATALOG, options)
    try:
        return [(item.path, item.split, item.label, item.refused) for item in source.items(Asked())]
    finally:
        source.close()


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.fixture(scope="module")
def photos() -> dict[str, bytes]:
    """An image folder with classes, in no order."""
    return {f"{'cat' if n % 3 else 'dog'}/{n:03d}.jpg": jpeg(n) for n in (4, 1, 5, 0, 2, 3, 7, 6)}


@pytest.fixture(scope="module")
def unpacked(photos: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name, data in photos.items():
        write(folder / name, data)
    return folder


# -- ImageNet ----------------------------------------------------------------------------------------------------------


def devkit(truth: list[int]) -> bytes:
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)]
    synsets = np.array(
        [(n + 1, name, f"a {name}", 0) for n, name in enumerate(SYNSETS)] + [(1001, "n09", "animal", 3)], dtype=fields
    )
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets.reshape(-1, 1)}, do_compression=True)
    import gzip

    folder = "ILSVRC2012_devkit_t12"
    return gzip.compress(
        tar_of(
            {
                f"{folder}/readme.txt": b"read me",
                f"{folder}/data/meta.mat": meta.getvalue(),
                f"{folder}/data/ILSVRC2012_validation_ground_truth.txt": "".join(f"{n}\n" for n in truth).encode(),
            }
        )
    )


def imagenet(folder: Path) -> tuple[dict[str, dict[str, bytes]], list[int], dict[str, bytes]]:
    """A small ILSVRC2012 of three classes, and what is in it."""
    train = {
        name: {f"{name}_{n * 7 % 5}.JPEG": jpeg(len(name) + n) for n in range(3 + k)} for k, name in enumerate(SYNSETS)
    }
    truth = [3, 1, 2, 1, 3]
    val = {f"ILSVRC2012_val_{n:08d}.JPEG": jpeg(100 + n) for n in (2, 1, 5, 4, 3)}
    write(folder / "ILSVRC2012_img_train.tar", tar_of({f"{name}.tar": tar_of(files) for name, files in train.items()}))
    write(folder / "ILSVRC2012_img_val.tar", tar_of(val))
    write(folder / "ILSVRC2012_devkit_t12.tar.gz", devkit(truth))
    return train, truth, val


def test_imagenets_own_tars_give_the_shards_of_the_unpacked_folders(tmp_path: Path) -> None:
    train, truth, val = imagenet(tmp_path / "tars")
    for name, files in train.items():
        for file, data in files.items():
            write(tmp_path / "folders" / "train" / name / file, data)
    for file, data in val.items():
        number = truth[int(file[-13:-5]) - 1]
        write(tmp_path / "folders" / "val" / SYNSETS[number - 1] / file, data)
    assert recognised(tmp_path / "tars", Catalog()) == "imagenet"
    made = make(tmp_path / "tars", tmp_path / "a", workers=2)
    make(tmp_path / "folders", tmp_path / "b")
    assert shards(tmp_path / "a") == shards(tmp_path / "b")
    assert made.classes == sorted(SYNSETS)
    for split in ("train", "val"):
        theirs = ImageFolder(str(tmp_path / "folders" / split))
        expected = [(f"{Path(p).parent.name}/{Path(p).stem}", label) for p, label in theirs.samples]
        assert rows(tmp_path / "a", split) == expected
        assert made.classes == theirs.classes
    assert made.options["train"]["source"] == "imagenet"


def test_one_of_imagenets_tars_alone_and_labels_from_a_text_list(tmp_path: Path) -> None:
    _, truth, val = imagenet(tmp_path)
    make(tmp_path / "ILSVRC2012_img_train.tar", tmp_path / "a")
    assert list(Manifest.load(tmp_path / "a").splits) == ["train"]
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(DataError, match="has no labels of its own; put ILSVRC2012_devkit_t12"):
        listed(tmp_path / "ILSVRC2012_img_val.tar")
    lines = "".join(f"{SYNSETS[n - 1]}\n" for n in truth)
    write(tmp_path / "imagenet_2012_validation_synset_labels.txt", lines)
    found = {path.rpartition("/")[2]: label for path, _, label, _ in listed(tmp_path / "ILSVRC2012_img_val.tar")}
    assert found == {name: SYNSETS[truth[n] - 1] for n, name in enumerate(sorted(val))}
    write(tmp_path / "imagenet_2012_validation_synset_labels.txt", lines + "n01\n")
    with pytest.raises(DataError, match="holds 5 images, but there are 6 labels"):
        listed(tmp_path / "ILSVRC2012_img_val.tar")


@pytest.mark.parametrize(
    ("truth", "message"), [([3, 1, 2, 1], "5 images, but there are 4"), ([3, 1, 2, 1, 9], "has the class '9'")]
)
def test_a_devkit_that_does_not_fit_is_a_sentence(tmp_path: Path, truth: list[int], message: str) -> None:
    imagenet(tmp_path)
    write(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", devkit(truth))
    with pytest.raises(DataError, match=message):
        listed(tmp_path)


def test_a_damaged_devkit_is_a_sentence(tmp_path: Path) -> None:
    imagenet(tmp_path)
    whole = (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").read_bytes()
    for data in (b"", b"nothing", whole[: len(whole) // 2], whole[:60] + b"\0" * 9 + whole[69:]):
        write(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", data)
        with pytest.raises(DataError, match="download it again"):
            listed(tmp_path)


# -- tars --------------------------------------------------------------------------------------------------------------


def shard_of(count: int = 6, first: int = 0, label: str = "cls") -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for n in range(first, first + count):
        files[f"a/{n:04d}.jpg"] = jpeg(n)
        files[f"a/{n:04d}.{label}"] = str(n % 3).encode()
    return files


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_every_kind_are_read_as_they_are(tmp_path: Path, format: int) -> None:
    name = f"{'d' * 90}/{'k' * 80}"
    files = {f"{name}.jpg": jpeg(1), f"{name}.cls": b"2\n", "__meta__": b"x", "b.PNG.json": b"{}"}
    write(tmp_path / "in" / "x-val-0.tar", tar_of(files, format))
    assert listed(tmp_path / "in")[0] == (f"{name}.jpg", "val", 2, "")
    source = open_source(tmp_path / "in", "webdataset", Catalog(), {})
    item = next(iter(source.items(Asked())))
    assert source.read(item.place) == files[f"{name}.jpg"]


def test_webdataset_shards_are_a_source_and_keep_keys_labels_and_classes(unpacked: Path, tmp_path: Path) -> None:
    make(unpacked, tmp_path / "a")
    again = make(tmp_path / "a", tmp_path / "b")
    assert again.classes == ["cat", "dog"]
    assert shards(tmp_path / "b") == shards(tmp_path / "a")


def test_lists_of_classes_are_read_from_shards_tables_and_parquet(
    photos: dict[str, bytes], unpacked: Path, tmp_path: Path
) -> None:
    lists = [["b", "a"], [], ["c"], ["a"], ["b"], ["c", "b", "a"], [], ["a"]]
    given = dict(zip(sorted(photos), lists, strict=True))
    table = write(tmp_path / "labels.csv", "".join(f"{name},{';'.join(few)}\n" for name, few in given.items()))
    wanted = make(unpacked, tmp_path / "multi", labels=table)
    for name, data in photos.items():
        write(tmp_path / "in" / name, data)
    lines = "".join(json.dumps({"path": name, "label": few}) + "\n" for name, few in given.items())
    column = pa.table({"image": [photos[name] for name in given], "label": lists})
    pq.write_table(column, tmp_path / "x.parquet")
    for number, source in enumerate(
        [tmp_path / "multi", write(tmp_path / "in" / "x.jsonl", lines), tmp_path / "x.parquet"]
    ):
        made = make(source, tmp_path / f"out{number}", workers=2)
        index = SampleIndex.load(tmp_path / f"out{number}", made.splits["train"].index)
        assert [[made.classes[c] for c in index.labels(row)] for row in range(8)] == [sorted(few) for few in lists]
        assert made.labelling == wanted.labelling == "multi"
        if number < 2:
            assert shards(tmp_path / f"out{number}") == shards(tmp_path / "multi")
        assert verify(tmp_path / f"out{number}") == []
    held = make(tmp_path / "in" / "x.jsonl", tmp_path / "held", splits=["val=0.4"])
    there: dict[str, list[str]] = {}
    for split in ("train", "val"):
        index = SampleIndex.load(tmp_path / "held", held.splits[split].index)
        there |= {index.key(row): [held.classes[c] for c in index.labels(row)] for row in range(len(index))}
    assert there == {name[:-4]: sorted(few) for name, few in given.items()}
    mixed = write(tmp_path / "in" / "m.jsonl", lines + json.dumps({"path": "cat/../dog/000.jpg", "label": "a"}) + "\n")
    with pytest.raises(DataError, match="outside the table's folder"):
        make(mixed, tmp_path / "mixed")
    mixed = write(tmp_path / "in" / "m.jsonl", lines.replace('["c"]', '"c"'))
    with pytest.raises(DataError, match="images with one class and images with lists"):
        make(mixed, tmp_path / "mixed")


def test_names_give_the_order_of_classes_that_are_names(photos: dict[str, bytes], tmp_path: Path) -> None:
    table = material("table", tmp_path / "in", photos)
    names = write(tmp_path / "names.txt", "dog\nbird\ncat\n")
    made = make(table, tmp_path / "out", class_names=names)
    assert made.classes == ["dog", "bird", "cat"]
    assert dict(rows(tmp_path / "out"))["cat/001"] == 2
    with pytest.raises(DataError, match="has the label 'cat', which is not among its class names"):
        make(table, tmp_path / "b", class_names=write(tmp_path / "few.txt", "dog\n"))


def test_maps_are_not_lost_silently(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.tar", tar_of({"k.jpg": jpeg(1), "k.seg.png": b"x"}))
    write(tmp_path / "in" / "manifest.json", json.dumps({"map_classes": ["a"]}))
    with pytest.raises(DataError, match="have maps of classes, which are not read from shards"):
        listed(tmp_path / "in")
    assert listed(tmp_path / "in", label="none")[0][0] == "k.jpg"


def test_labels_of_img2dataset_timm_and_text_files(tmp_path: Path) -> None:
    said = {
        "k.jpg": jpeg(1),
        "k.txt": b"a caption",
        "k.json": json.dumps({"caption": "a", "status": "success"}).encode(),
    }
    write(tmp_path / "a.tar", tar_of(said))
    assert listed(tmp_path / "a.tar") == [("k.jpg", "train", None, "")]  # a caption is no class
    assert listed(tmp_path / "a.tar", label="txt")[0][2] == "a caption"
    assert listed(tmp_path / "a.tar", label="json:status")[0][2] == "success"
    write(tmp_path / "b.tar", tar_of({"k.jpg": jpeg(1), "k.json": json.dumps({"label": 7, "filename": "x"}).encode()}))
    assert listed(tmp_path / "b.tar")[0][2] == 7
    assert listed(tmp_path / "b.tar", label="none")[0][2] is None
    write(tmp_path / "c.tar", tar_of({"k.json": b"{}", "k.txt": b"x", "l.gif": b"x"}))
    assert listed(tmp_path / "c.tar")[0] == ("c.tar/k", "train", None, "no image beside .json, .txt")


def damaged_header(data: bytes) -> bytes:
    at = data.rindex(b"a/0004.jpg")
    return data[:at] + b"b" + data[at + 1 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda d: d[:-10240],
            "without the mark of its end: it is cut",
        ),  # between members: tar and webdataset say nothing
        (lambda d: d[:3000], "it is cut"),
        (damaged_header, r"the header at byte [\d,]+ is damaged"),
        (lambda d: d + d, "goes on after the mark of its end"),
        (lambda d: b"\x1f\x8b" + d, "is compressed"),
        (lambda d: b"hello" * 400, "it is no tar"),
        (lambda d: b"", "it is cut"),
        (lambda d: tar_of({**shard_of(2), "a/0001.png": jpeg(1)}), "several images, jpg and png"),
        (lambda d: tar_of({**shard_of(2), "z.jpg": jpeg(1), "./a/0000.jpg": jpeg(1)}), "the sample 'a/0000' twice"),
        (lambda d: tar_of({"k.jpg": jpeg(1), "./k.JPG": jpeg(1)}), r"'./k.JPG' twice"),
        (lambda d: tar_of({"k.jpg": jpeg(1), "k.cls": b"\xff"}), "no UTF-8 text"),
        (lambda d: tar_of({"k.jpg": jpeg(1), "k.json": b"{"}), "is damaged"),
        (lambda d: tar_of({"k.jpg": jpeg(1), "k.cls": b"0" * (1 << 21)}), "too many for a label"),
    ],
)
def test_what_is_wrong_with_a_tar_is_a_sentence(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    whole = tar_of(shard_of())
    end = whole.rindex(b"\0" * 1024)
    assert set(whole[end:]) == {0}
    data = damage(whole)
    if message.startswith("without"):
        data = whole[: len(whole.rstrip(b"\0")) + -len(whole.rstrip(b"\0")) % 512]
    path = write(tmp_path / "x.tar", data)
    with pytest.raises(DataError, match=message) as caught:
        listed(path)
    assert str(path) in str(caught.value)


def test_a_sparse_member_and_huge_claims_allocate_nothing(tmp_path: Path) -> None:
    def member(type_: bytes, size: int, name: str = "k.jpg") -> bytes:
        info = tarfile.TarInfo(name)
        info.type, info.size = type_, size
        return info.tobuf(tarfile.GNU_FORMAT)

    for type_, size, message in (
        (tarfile.GNUTYPE_SPARSE, 1 << 33, "is sparse"),
        (tarfile.REGTYPE, 1 << 40, "it is cut"),
        (tarfile.GNUTYPE_LONGNAME, 1 << 33, "claims a name of"),
        (tarfile.XHDTYPE, 1 << 33, "claims a name of"),
        (b"Z", 5, "unknown type"),
    ):
        path = write(tmp_path / "x.tar", member(type_, size) + bytes(10240))
        with pytest.raises(DataError, match=message):
            listed(path)


def test_random_damage_to_a_tar_is_an_error_or_leaves_whole_members(tmp_path: Path) -> None:
    whole, rng = tar_of(shard_of(), tarfile.PAX_FORMAT), np.random.default_rng(0)
    names = {name for name, *_ in listed(write(tmp_path / "x.tar", whole))}
    said = 0
    for _ in range(200):
        data = bytearray(whole)
        data[int(rng.integers(len(data) - 10240))] ^= 1 << int(rng.integers(8))
        try:
            found = listed(write(tmp_path / "x.tar", bytes(data)))
        except MaePipeError:
            said += 1
        else:  # within the bytes of a member, or of a label
            assert {name for name, *_ in found} == names
    assert said > 20


# -- zip, table --------------------------------------------------------------------------------------------------------


def zip_of(path: Path, files: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


@pytest.mark.parametrize("top", ["", "photos/"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_gives_the_shards_of_its_folder(
    photos: dict[str, bytes], unpacked: Path, tmp_path: Path, kind: str, top: str
) -> None:
    files = {**{top + name: data for name, data in photos.items()}, f"{top}notes.txt": b"x"}
    packed = packed_in(kind, tmp_path, files)
    make(unpacked, tmp_path / "a")
    made = make(packed, tmp_path / "b", workers=2)
    assert shards(tmp_path / "a") == shards(tmp_path / "b")
    assert [entry.reason for entry in made.splits["train"].refused] == ["not an image file"]


def packed_in(kind: str, folder: Path, files: dict[str, bytes]) -> Path:
    return zip_of(folder / "x.zip", files) if kind == "zip" else write(folder / "x.tar", tar_of(files))


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_has_splits_as_a_folder_has(kind: str, photos: dict[str, bytes], tmp_path: Path) -> None:
    files = {f"{'val' if n % 4 == 0 else 'train'}/{name}": data for n, (name, data) in enumerate(photos.items())}
    for name, data in files.items():
        write(tmp_path / "in" / name, data)
    make(tmp_path / "in", tmp_path / "a")
    make(packed_in(kind, tmp_path, files), tmp_path / "b")
    assert shards(tmp_path / "a") == shards(tmp_path / "b")


def test_a_zip_leads_nowhere_else_and_unpacks_no_more_than_it_says(tmp_path: Path) -> None:
    out = {
        "../x.jpg": jpeg(1),
        "/y.jpg": jpeg(2),
        ".hidden/z.jpg": jpeg(3),
        "__MACOSX/w.jpg": jpeg(4),
        "ok.jpg": jpeg(5),
    }
    found = listed(zip_of(tmp_path / "x.zip", out))
    assert {path for path, _, _, refused in found if not refused} == {"ok.jpg"}
    assert {refused for *_, refused in found} == {"", "a path that leads out of the archive", "a hidden file"}
    bomb = zip_of(tmp_path / "bomb.zip", {"b.jpg": bytes(1 << 22), "a.jpg": jpeg(1)})
    data = bytearray(bomb.read_bytes())
    at = data.index(b"PK\1\2")
    data[at + 24 : at + 28] = (1000).to_bytes(4, "little")  # what it claims to unpack to
    made = make(write(tmp_path / "bomb.zip", bytes(data)), tmp_path / "out")
    assert [entry.path for entry in made.splits["train"].refused] == ["b.jpg"]
    assert made.splits["train"].images == 1


def test_random_damage_to_a_zip_is_an_error_or_a_refusal(photos: dict[str, bytes], tmp_path: Path) -> None:
    whole, rng = zip_of(tmp_path / "x.zip", photos).read_bytes(), np.random.default_rng(0)
    said = 0
    for _ in range(300):
        data = bytearray(whole)
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        source = open_source(write(tmp_path / "x.zip", bytes(data)), "zip", CATALOG, {})
        try:
            for item in list(source.items(Asked())):
                if not item.refused:
                    assert source.read(item.prefix + item.path) in photos.values()
        except (MaePipeError, Refusal):
            said += 1
        source.close()
    assert said > 200


def test_what_is_wrong_with_a_zip_is_a_sentence(photos: dict[str, bytes], tmp_path: Path) -> None:
    whole = zip_of(tmp_path / "x.zip", photos).read_bytes()
    with pytest.raises(DataError, match="cannot be read as a zip"):
        listed(write(tmp_path / "cut.zip", whole[:-200]))
    data = zip_of(tmp_path / "two.zip", {"a.jpg": jpeg(1), "b.jpg": jpeg(2)}).read_bytes()
    write(tmp_path / "two.zip", data.replace(b"b.jpg", b"a.jpg"))
    with pytest.raises(DataError, match=r"holds 'a.jpg' twice"):
        listed(tmp_path / "two.zip")


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_a_table_gives_the_shards_of_the_folder(unpacked: Path, tmp_path: Path, ending: str) -> None:
    lines = [(str(path.relative_to(unpacked)), path.parent.name) for path in sorted(unpacked.rglob("*.jpg"))]
    if ending == "jsonl":
        text = "".join(json.dumps({"file_name": path, "label": label, "more": [1]}) + "\n" for path, label in lines)
    else:
        out = io.StringIO()
        writer = csv.writer(out, delimiter="," if ending == "csv" else "\t")
        writer.writerows([("Path", "id", "class"), *((path, 5, label) for path, label in lines)])
        text = out.getvalue()
    table = write(tmp_path / "in" / f"list.{ending}", text)
    for path, _ in lines:
        write(tmp_path / "in" / path, (unpacked / path).read_bytes())
    make(unpacked, tmp_path / "a")
    make(table, tmp_path / "b")
    assert shards(tmp_path / "a") == shards(tmp_path / "b")


def test_a_table_has_splits_and_numbers_and_says_what_is_not_there(tmp_path: Path) -> None:
    for n in range(3):
        write(tmp_path / f"{n}.jpg", jpeg(n))
    table = write(tmp_path / "list.csv", "path,label,split\n0.jpg,10,train\n1.jpg,2,val\n2.jpg,0,train\nno.jpg,1,val\n")
    made = make(table, tmp_path / "out")
    assert made.classes == [str(n) for n in range(11)]
    assert rows(tmp_path / "out") == [("0", 10), ("2", 0)]
    assert rows(tmp_path / "out", "val") == [("1", 2)]
    assert [(entry.path, entry.reason) for entry in made.splits["val"].refused] == [("no.jpg", "not there, or no file")]
    names = write(tmp_path / "names.txt", "".join(f"class {n}\n" for n in range(11)))
    assert make(table, tmp_path / "named", class_names=names).classes[10] == "class 10"
    short = write(tmp_path / "short.txt", "a\nb\n")
    with pytest.raises(DataError, match="has the label 10, but there are 2 class names"):
        make(table, tmp_path / "short", class_names=short)
    mixed = write(tmp_path / "mixed.csv", "path,label\n0.jpg,10\n1.jpg,02\n2.jpg,cat\n")
    assert make(mixed, tmp_path / "mixed").classes == ["02", "10", "cat"]


def test_images_without_a_label_among_others_are_refused_and_the_rest_keep_theirs(tmp_path: Path) -> None:
    for n in range(4):
        write(tmp_path / f"{n}.jpg", jpeg(n))
    made = make(write(tmp_path / "list.csv", "path,label\n0.jpg,dog\n1.jpg,\n2.jpg,cat\n3.jpg,dog\n"), tmp_path / "out")
    assert made.classes == ["cat", "dog"]
    assert rows(tmp_path / "out") == [("0", 1), ("2", 0), ("3", 1)]
    assert [(entry.path, entry.reason) for entry in made.splits["train"].refused] == [("1.jpg", "no label")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n../x.jpg,1\n", "outside the table's folder"),
        ("path,label\n/etc/x.jpg,1\n", "outside the table's folder"),
        ("path,label\na.jpg,1\na.jpg,1\n", "lists 'a.jpg' twice, the second time in line 3"),
        ("path,label\na.jpg\n", "line 2 has 1 columns, the first line has 2"),
        ("x,y\na.jpg,1\n", "has the columns x, y, none of which"),
        ("path,label\n,1\n", "line 2 has no path"),
        ('path\n"a.jpg\n', "cannot be read as a table"),
        ("path,label,split\na.jpg,1,../x\n", "a split '../x'"),
        ("path,label\na.jpg,-1\n", None),
    ],
)
def test_what_is_wrong_with_a_table_is_a_sentence(tmp_path: Path, text: str, message: str | None) -> None:
    write(tmp_path / "a.jpg", jpeg(0))
    table = write(tmp_path / "list.csv", text)
    if message is None:
        assert scan(open_source(table, "table", Catalog(), {})).classes == ["-1"]
        return
    with pytest.raises(DataError, match=message):
        scan(open_source(table, "table", Catalog(), {}))


def test_a_table_leads_elsewhere_only_when_asked(unpacked: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "list.csv", f"path\n{next(unpacked.rglob('*.jpg'))}\n")
    assert make(table, tmp_path / "out", source_options={"absolute": True}).splits["train"].images == 1


# -- Parquet -----------------------------------------------------------------------------------------------------------


def hugging_face(path: Path, photos: dict[str, bytes], labels: list[int], names: list[str], group: int = 3) -> Path:
    table = pa.table(
        {
            "image": pa.array([{"bytes": data, "path": name} for name, data in photos.items()]),
            "label": pa.array(labels, pa.int64()),
        }
    )
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table.replace_schema_metadata(meta), path, row_group_size=group)
    return path


def test_parquet_of_hugging_face_keeps_bytes_labels_and_the_order_of_classes(
    photos: dict[str, bytes], tmp_path: Path
) -> None:
    labels = [n % 3 for n in range(len(photos))]
    folder = tmp_path / "set"
    hugging_face(folder / "data" / "train-00000-of-00002.parquet", photos, labels, ["zebra", "ant", "cat"])
    hugging_face(folder / "data" / "train-00001-of-00002.parquet", photos, labels, ["zebra", "ant", "cat"])
    hugging_face(folder / "data" / "validation-00000-of-00001.parquet", photos, [-1] * 8, ["zebra", "ant", "cat"])
    write(folder / "README.md", "x")
    made = make(folder, tmp_path / "out", workers=2)
    assert made.classes == ["zebra", "ant", "cat"]
    assert [label for _, label in rows(tmp_path / "out")] == labels * 2
    assert [label for _, label in rows(tmp_path / "out", "validation")] == [-1] * 8
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        stored = [tar.extractfile(member).read() for member in tar if member.name.endswith("jpg")]  # type: ignore[union-attr]
    assert stored == list(photos.values())[:4]


def test_parquet_of_plain_bytes_and_names(photos: dict[str, bytes], tmp_path: Path) -> None:
    table = pa.table(
        {"jpg": list(photos.values()), "class": [name.partition("/")[0] for name in photos], "n": range(8)}
    )
    pq.write_table(table, tmp_path / "x.parquet")
    made = make(tmp_path / "x.parquet", tmp_path / "out")
    assert made.classes == ["cat", "dog"]
    assert [label for _, label in rows(tmp_path / "out")] == [int(name.startswith("dog")) for name in photos]
    assert listed(tmp_path / "x.parquet", label="none")[0][2] is None
    assert listed(tmp_path / "x.parquet", label="n")[3][2] == 3


def test_what_is_wrong_with_parquet_is_a_sentence(photos: dict[str, bytes], tmp_path: Path) -> None:
    path = hugging_face(tmp_path / "x.parquet", photos, [0] * 8, ["a"])
    with pytest.raises(DataError, match="has no column 'lable'; it has image, label"):
        listed(path, label="lable")
    with pytest.raises(DataError, match="has no column 'img'"):
        listed(path, image="img")
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "y.parquet")
    with pytest.raises(DataError, match="no column of image bytes"):
        listed(tmp_path / "y.parquet")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        listed(write(tmp_path / "z.parquet", path.read_bytes()[:-50]))
    hugging_face(tmp_path / "w.parquet", photos, [7] * 8, ["a"])
    with pytest.raises(DataError, match="has the label 7, but there are 1 class names"):
        make(tmp_path / "w.parquet", tmp_path / "out")
    pq.write_table(pa.table({"image": [jpeg(1), None, b""]}), tmp_path / "v.parquet")
    made = make(tmp_path / "v.parquet", tmp_path / "v")
    assert [entry.reason for entry in made.splits["train"].refused] == ["no bytes in its row"] * 2


# -- all ---------------------------------------------------------------------------------------------------------------


def material(kind: str, folder: Path, photos: dict[str, bytes]) -> Path:
    """What a source of that kind reads."""
    folder.mkdir(exist_ok=True)
    if kind == "folder":
        for name, data in photos.items():
            write(folder / name, data)
        return folder
    if kind == "zip":
        return zip_of(folder / "x.zip", photos)
    if kind == "tar":
        return write(folder / "x.tar", tar_of(photos))
    if kind == "table":
        for name, data in photos.items():
            write(folder / name, data)
        return write(folder / "list.csv", "path,label\n" + "".join(f"{name},{name[:3]}\n" for name in photos))
    if kind == "webdataset":
        write(folder / "x-0.tar", tar_of(shard_of()))
        write(folder / "x-1.tar", tar_of(shard_of(first=6)))
        return folder
    if kind == "parquet":
        return hugging_face(folder / "x.parquet", photos, [0, 1] * 4, ["cat", "dog"])
    if kind == "beton":
        samples = [(data, number % 2) for number, data in enumerate(photos.values())]
        return write(folder / "x.beton", plain_beton([("image", 3), ("label", 1)], samples))
    imagenet(folder)
    return folder


KINDS = ("beton", "folder", "imagenet", "parquet", "table", "tar", "webdataset", "zip")


@pytest.mark.parametrize("kind", KINDS)
def test_every_built_in_source_keeps_the_contract(kind: str, photos: dict[str, bytes], tmp_path: Path) -> None:
    path = material(kind, tmp_path / "in", photos)
    assert recognised(path, Catalog()) == kind
    testing.check_source(open_source(path, kind, Catalog(), {}))
    assert sorted(KINDS) == Catalog().names("source")


@pytest.mark.parametrize("kind", KINDS)
def test_origins_hold_the_bytes_that_are_read(kind: str, photos: dict[str, bytes], tmp_path: Path) -> None:
    source = open_source(material(kind, tmp_path / "in", photos), kind, Catalog(), {})
    seen = 0
    for item in source.items(Asked()):
        place = item.place or item.prefix + item.path
        origin = None if item.refused else source.origin(place)
        if origin:
            data = origin.path.read_bytes()[origin.offset :]
            assert data[: origin.size] == source.read(place)
            seen += 1
    assert bool(seen) == (kind not in ("parquet", "zip"))  # this zip is compressed
    if kind == "zip":
        stored = open_source(zip_of(tmp_path / "s.zip", photos, zipfile.ZIP_STORED), kind, Catalog(), {})
        origin = stored.origin("cat/001.jpg")
        assert origin is not None
        assert origin.path.read_bytes()[origin.offset :][: origin.size] == photos["cat/001.jpg"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_build_goes_on_where_it_was_and_sees_what_changed(
    kind: str, photos: dict[str, bytes], tmp_path: Path
) -> None:
    path = material(kind, tmp_path / "in", photos)
    make(path, tmp_path / "whole")
    count = [0]

    def stop(done: int, refused: int, total: int) -> None:
        count[0] += 1
        if count[0] == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(path, tmp_path / "out", progress=stop)
    kept = (tmp_path / "out" / "train-000000.tar").stat().st_mtime_ns
    make(path, tmp_path / "out")
    assert (tmp_path / "out" / "train-000000.tar").stat().st_mtime_ns == kept
    assert shards(tmp_path / "out") == shards(tmp_path / "whole")
    count[0] = 0
    with pytest.raises(KeyboardInterrupt):
        make(path, tmp_path / "late", progress=stop)
    before = (tmp_path / "late" / "train-000000.tar").stat().st_mtime_ns
    for file in (tmp_path / "in").rglob("*"):
        if file.is_file():
            os.utime(file, ns=(1, 1))
    if kind == "zip":
        zip_of(path, photos, zipfile.ZIP_STORED)
    make(path, tmp_path / "late")
    assert (tmp_path / "late" / "train-000000.tar").stat().st_mtime_ns != before
    assert verify(tmp_path / "late") == []


def test_the_command_takes_a_source_and_its_options(photos: dict[str, bytes], tmp_path: Path) -> None:
    table = material("table", tmp_path / "in", photos)
    done = CliRunner().invoke(
        _group, ["shard", str(table), str(tmp_path / "out"), "--source", "table", "--set", "label=label"]
    )
    assert done.exit_code == 0, done.output
    assert "train: 8 images of 2 classes" in done.output
    with pytest.raises(PluginError, match=r"there is no option 'lable' \(did you mean 'label'\?\)"):
        make(table, tmp_path / "b", source_options={"lable": "x"})
    with pytest.raises(PluginError, match="there is no source plugin 'tabel'"):
        make(table, tmp_path / "b", source_name="tabel")
    assert not (tmp_path / "b").exists()


def test_what_no_source_knows_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not there"):
        recognised(tmp_path / "no", Catalog())
    with pytest.raises(DataError, match="nor a file that a source knows"):
        recognised(write(tmp_path / "x.docx", "x"), Catalog())
    write(tmp_path / "mixed" / "a.tar", tar_of(shard_of()))
    write(tmp_path / "mixed" / "b.parquet", "x")
    with pytest.raises(DataError, match=r"parquet and webdataset; say which with --source"):
        recognised(tmp_path / "mixed", Catalog())


STRANGER = '''
"""A source."""
from mae_pipe.api import ImageSource, Item, plugin

@plugin("letters")
class Letters(ImageSource):
    """Images made of nothing."""
    @classmethod
    def recognises(cls, path):
        return path.suffix == ".letters"
    def items(self, asked):
        for letter in self.path.read_text():
            yield Item(f"{letter}.png", label="vowel" if letter in "aeiou" else "consonant")
    def read(self, place):
        import io
        from PIL import Image
        out = io.BytesIO()
        Image.new("L", (16, 16), ord(place[0])).save(out, "PNG")
        return out.getvalue()
'''


def test_a_strangers_source_is_used_as_ours_are_and_its_failure_is_a_sentence(tmp_path: Path) -> None:
    catalog = Catalog((write(tmp_path / "mine.py", STRANGER),))
    path = write(tmp_path / "x.letters", "abcde")
    made = make(path, tmp_path / "out", catalog=catalog, workers=2)
    assert made.classes == ["consonant", "vowel"]
    assert rows(tmp_path / "out") == [("a", 1), ("b", 0), ("c", 0), ("d", 0), ("e", 1)]
    source: ImageSource = catalog.build("source", "letters", {}, path=path)
    testing.check_source(source)
    vain = Catalog((write(tmp_path / "vain.py", STRANGER.replace("path.suffix ==", "path.ending ==")),))
    assert recognised(tmp_path, vain) == "folder"  # a broken plugin is in nobody's way
    with pytest.raises(
        DataError, match=r"nor a file that a source knows .*; the source plugin 'letters' failed: Attri"
    ):
        recognised(path, vain)
    broken = Catalog((write(tmp_path / "bad.py", STRANGER.replace("self.path.read_text()", "5")),))
    with pytest.raises(PluginError, match="the source plugin 'letters' failed: TypeError"):
        make(path, tmp_path / "b", catalog=broken)
    broken = Catalog((write(tmp_path / "bad2.py", STRANGER.replace("import io\n", "import oi\n")),))
    with pytest.raises(PluginError, match="the source plugin 'letters' failed: ModuleNotFoundError"):
        make(path, tmp_path / "b", catalog=broken)
