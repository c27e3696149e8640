"""Images of several classes: a table becomes ragged labels, in the shards and in batches."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.cli import _group
from mae_pipe.data import labels as tables
from mae_pipe.data.index import SampleIndex
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.order import Share
from mae_pipe.data.scan import scan
from mae_pipe.data.shelf import Shelf
from mae_pipe.data.sources import open_source
from mae_pipe.data.stream import open_stream
from mae_pipe.errors import DataError
from mae_pipe.sharding import build
from mae_pipe.verifying import verify
from tests.test_formats import THEIR_FILES

TABLE = """image,labels
a/0.png,sky;tree
a/1.png,tree
b/2.png,
b/3.png,"sky; car ;tree"
4.png,car
"""
CLASSES = ["car", "sky", "tree"]
KNOWN = {"a/0": {1, 2}, "a/1": {2}, "b/2": set(), "b/3": {0, 1, 2}, "4": {0}}


def paint(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names or tuple(f"{key}.png" for key in KNOWN)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12 + number, 10), (number * 20, 9, 9)).save(folder / name)
    return folder


def table(folder: Path, text: str = TABLE) -> Path:
    path = folder / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


def make(folder: Path, out: str = "out", **options: object) -> Manifest:
    given = {"catalog": Catalog(), "workers": 1, "per_shard": 2, "labels": folder / "labels.csv", **options}
    return build(folder / "in", folder / out, **given)  # type: ignore[arg-type]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    paint(tmp_path / "in")
    table(tmp_path)
    return tmp_path


def held(out: Path, split: str = "train") -> dict[str, set[int]]:
    index = SampleIndex.load(out, Manifest.load(out).splits[split].index)
    return {index.key(row): set(index.labels(row).tolist()) for row in range(len(index))}


@pytest.mark.parametrize("format", ["webdataset", "ffcv"])
def test_every_image_has_the_classes_of_its_line(source: Path, format: str) -> None:
    if format == "ffcv":
        pytest.importorskip("ffcv", reason="ffcv is not installed")
    manifest = make(source, format=format)
    assert (manifest.labelling, manifest.classes, manifest.splits["train"].labelled) == ("multi", CLASSES, True)
    assert held(source / "out") == KNOWN
    assert verify(source / "out") == []


def test_batches_have_a_row_of_zeros_and_ones_an_image(source: Path) -> None:
    make(source)
    data = recipe.Data(size=8, workers=2)
    stream = open_stream(
        source / "out", "train", data, seed=0, share=Share(micro_batch=3), catalog=Catalog(), labels="multi"
    )
    batches = stream.batches()
    for _ in range(4):
        batch = next(batches)
        assert (batch.labels.shape, batch.labels.dtype) == ((3, 3), torch.float32)
        for number, row in zip(batch.numbers.tolist(), batch.labels, strict=True):
            assert set(torch.nonzero(row)[:, 0].tolist()) == KNOWN[stream.index.key(number)]
            assert set(row.tolist()) <= {0.0, 1.0}
    batches.close()  # type: ignore[attr-defined]
    padded = list(stream.once())[-1]
    assert padded.numbers.tolist() == [3, 4, -1]
    assert padded.labels[2].sum() == 0


def test_the_number_of_workers_changes_no_byte(source: Path) -> None:
    make(source)
    make(source, "two", workers=2)
    for path in (source / "out").iterdir():
        assert path.read_bytes() == (source / "two" / path.name).read_bytes()


@THEIR_FILES
def test_plain_webdataset_reads_the_classes(source: Path) -> None:
    import webdataset

    make(source)
    urls = sorted(map(str, (source / "out").glob("*.tar")))
    seen = dict(webdataset.WebDataset(urls, shardshuffle=False).decode().to_tuple("__key__", "json"))
    gc.collect()
    assert {key: set(value["labels"]) for key, value in seen.items()} == KNOWN


def test_an_image_without_a_line_is_named_and_stops_nothing(source: Path) -> None:
    paint(source / "in", "a/more.png")
    split = make(source).splits["train"]
    assert [(refused.path, refused.reason) for refused in split.refused] == [("a/more.png", "no line in labels.csv")]
    assert held(source / "out") == KNOWN


def test_splits_are_listed_by_their_path_below_the_source(tmp_path: Path) -> None:
    paint(tmp_path / "in", "train/x.png", "train/deep/y.png", "val/x.png")
    table(tmp_path, "train/x.png,one\ntrain/deep/y.png,two;one\n./val/x.png,two\n")
    manifest = make(tmp_path)
    assert manifest.classes == ["one", "two"]
    assert held(tmp_path / "out") == {"x": {0}, "deep/y": {0, 1}}
    assert held(tmp_path / "out", "val") == {"x": {1}}


def test_the_order_of_lines_does_not_matter_and_names_may_fix_that_of_classes(source: Path) -> None:
    make(source)
    lines = TABLE.splitlines()
    table(source, "\ufeff" + "\n".join([*reversed(lines[1:]), "", ""]))
    make(source, "turned")
    assert held(source / "turned") == KNOWN
    (source / "names.txt").write_text("tree\nsky\nbird\ncar\n")
    manifest = make(source, "named", class_names=source / "names.txt")
    assert manifest.classes == ["tree", "sky", "bird", "car"]
    assert held(source / "named")["b/3"] == {0, 1, 3}


def test_a_split_with_the_same_names_can_join(source: Path) -> None:
    (source / "names.txt").write_text("sky\ntree\ncar\n")
    names = source / "names.txt"
    make(source, splits=("train",), class_names=names)
    table(source, "a/0.png,sky\n")
    make(source, splits=("val",), class_names=names)
    assert held(source / "out", "val") == {"a/0": {0}}
    assert len(held(source / "out")) == 5
    with pytest.raises(DataError, match="another kind of labels"):
        build(paint(source / "folders", "a/1.png"), source / "out", catalog=Catalog(), splits=("test",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a/0.png,sky\nnowhere.png,sky\n", "line 2 lists 'nowhere.png', but the folder holds no such image"),
        ("nowhere.png,sky\n", "line 1 lists 'nowhere.png'"),
        ("a/0.png,sky\na/0.png,tree\n", "lists 'a/0.png' twice"),
        ("a/0.png,sky,tree\n", "line 1 has 3 columns; expected lines of PATH,CLASS;CLASS"),
        ("a/0.png\n", "line 1 has 1 columns"),
        ("path,labels\n", "lists no image"),
        ("", "lists no image"),
        ('a/0.png,"sky\n', "cannot be read as a table"),
    ],
)
def test_a_table_that_is_not_understood_is_a_sentence(source: Path, text: str, message: str) -> None:
    table(source, text)
    with pytest.raises(DataError, match=message):
        make(source)
    assert not (source / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("sky\ntree\n", "has the class 'car', which is not among"), ("sky\n\ntree", "an empty line"), ("", "no name")]
    + [("sky\nsky\n", "the name 'sky' twice")],
)
def test_names_that_do_not_fit_are_a_sentence(source: Path, text: str, message: str) -> None:
    (source / "names.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        make(source, class_names=source / "names.txt")


def test_a_missing_table_or_one_that_is_not_text_is_a_sentence(source: Path) -> None:
    (source / "labels.csv").write_bytes(b"\xff\xfe\x00,\x00")
    with pytest.raises(DataError, match="cannot be read as a table"):
        make(source)
    with pytest.raises(DataError, match="cannot be read"):
        make(source, labels=source / "nowhere.csv")
    with pytest.raises(DataError, match="give --maps or --labels too"):
        make(source, labels=None, class_names=source / "labels.csv")


@given(
    st.dictionaries(
        st.sampled_from([f"{a}/{b}.png" for a in "abc" for b in range(9)]), st.sets(st.sampled_from("wxyz"))
    )
)
@settings(max_examples=60, deadline=None)
def test_any_table_gives_each_image_its_own_classes(tmp_path_factory: pytest.TempPathFactory, known: dict) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    if not folder.exists():
        paint(folder, *(f"{a}/{b}.png" for a in "abc" for b in range(9)))
    path = table(folder, "file,classes\n" + "".join(f"{name},{';'.join(names)}\n" for name, names in known.items()))
    listings = scan(open_source(folder, "folder", Catalog(), {}), classes=False).splits
    if not known:
        with pytest.raises(DataError, match="lists no image"):
            tables.read(path, listings, None)
        return
    names, (lists,) = tables.read(path, listings, None)
    assert names == sorted(set().union(*known.values()))
    for number in range(len(listings[0])):
        numbers = lists.of(number)
        wanted = known.get(listings[0].paths[number])
        assert (None if numbers is None else {names[n] for n in numbers}) == wanted
        assert numbers is None or list(numbers) == sorted(numbers)


def test_verify_sees_an_index_whose_lists_do_not_fit(source: Path) -> None:
    import hashlib

    make(source)
    out = source / "out"
    index = SampleIndex.load(out, Manifest.load(out).splits["train"].index)
    assert index.labels_end is not None
    index = replace(index, labels_end=index.labels_end[::-1].copy())
    index.save(out / "train.index.safetensors")
    data = json.loads((out / "manifest.json").read_text())
    digest = hashlib.sha256((out / "train.index.safetensors").read_bytes()).hexdigest()
    data["splits"]["train"]["index"]["sha256"] = digest
    (out / "manifest.json").write_text(json.dumps(data))
    assert "does not say which classes each image has" in "\n".join(verify(out))


def test_the_command_says_what_it_found(source: Path) -> None:
    arguments = ["shard", str(source / "in"), str(source / "out"), "--labels", str(source / "labels.csv")]
    result = CliRunner().invoke(_group, [*arguments, "--workers", "1"])
    assert result.exit_code == 0, result.output
    assert "train: 5 images of 3 classes, any number an image, in 1 webdataset shard, " in result.stdout
    assert (
        CliRunner().invoke(_group, ["verify", str(source / "out")]).stdout
        == "ok: train: 5 images in 1 webdataset shard\n"
    )


def test_no_class_at_all_is_a_class_list_too(tmp_path: Path) -> None:
    paint(tmp_path / "in", "x.png", "y.png")
    table(tmp_path, "x.png,\ny.png,\n")
    manifest = make(tmp_path)
    assert (manifest.classes, manifest.labelling) == ([], "multi")
    assert held(tmp_path / "out") == {"x": set(), "y": set()}
    assert verify(tmp_path / "out") == []
    assert np.array_equal(Shelf(tmp_path / "out", "train", Catalog()).index.label, [-1, -1])
