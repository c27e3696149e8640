"""Training straight from a folder of images is training on the shards of that folder."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

from mae_pipe import recipe, testing
from mae_pipe.catalog import Catalog
from mae_pipe.cli import _group
from mae_pipe.data.index import SampleIndex
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.order import Share
from mae_pipe.data.stream import open_stream
from mae_pipe.direct import shards_of, shards_of_run
from mae_pipe.errors import DataError
from mae_pipe.sharding import build
from mae_pipe.verifying import verify
from tests.test_resume import rows, start
from tests.test_sources import material

DATA = recipe.Data(size=16, micro_batch=4, workers=0, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def photos(image_folder: Path, tmp_path: Path) -> Path:
    """A folder with images that are converted, too."""
    folder = tmp_path / "photos"
    shutil.copytree(image_folder, folder)
    picture = Image.open(folder / "across" / "01.jpg")
    picture.convert("CMYK").save(folder / "across" / "cmyk.jpg")
    picture.resize((40, 30)).convert("P").save(folder / "down" / "moving.gif")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(folder / "down" / "turned.jpg", exif=turned)
    (folder / "down" / "notes.txt").write_text("x")
    return folder


def direct(folder: Path) -> tuple[Path, str]:
    """The index, and what was said."""
    console = Console(file=io.StringIO(), width=1000)
    out = shards_of(folder, Catalog(), console)
    return out, console.file.getvalue()  # type: ignore[attr-defined]


def batches(folder: Path) -> list[torch.Tensor]:
    stream = open_stream(folder, "train", DATA, seed=3, share=Share(0, 1, 4), catalog=Catalog())
    found = [
        pixels for _, batch in zip(range(14), stream.batches(), strict=False) for pixels in (batch.pixels, batch.labels)
    ]
    stream.close()
    return found


def test_the_batches_are_those_of_the_shards(photos: Path, tmp_path: Path) -> None:
    build(photos, tmp_path / "shards", catalog=Catalog(), workers=1)
    out, said = direct(photos)
    assert f"indexing the 27 images of {photos} once, in {out}" in said
    for here, there in zip(batches(out), batches(tmp_path / "shards"), strict=True):
        assert torch.equal(here, there)
    for column in ("size", "crc32", "width", "height", "label", "key_bytes", "marks_crc32"):
        mine, theirs = (
            SampleIndex.load(folder, Manifest.load(folder).split("train").index).columns().get(column)
            for folder in (out, tmp_path / "shards")
        )
        assert np.array_equal(mine, theirs), column  # type: ignore[arg-type]
    assert verify(out) == []


def test_an_index_is_made_once_and_holds_no_image_that_was_not_converted(photos: Path, cache: Path) -> None:
    out, _ = direct(photos)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.*")}
    again, said = direct(photos)
    assert (again, said) == (out, "")
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.*")} == before
    held = (out / "train-000000.files").stat().st_size
    assert held < sum(path.stat().st_size for path in photos.rglob("*.*"))
    assert Manifest.load(out).split("train").converted == {"cmyk": 1, "gif": 1, "palette": 1, "rotated": 1}


def test_what_changed_since_is_named_and_listed_anew(photos: Path) -> None:
    out, _ = direct(photos)
    changed = photos / "across" / "03.png"
    data = (photos / "down" / "00.png").read_bytes()
    changed.write_bytes(data)
    with pytest.raises(DataError, match=rf"{changed} has changed since it was listed: {len(data):,} bytes of 20"):
        batches(out)
    (photos / "down" / "02.jpg").unlink()
    with pytest.raises(DataError, match=r"(02.jpg cannot be read any more: No such file|03.png has changed)"):
        batches(out)
    assert "is damaged" in verify(out)[0] or "are damaged" in verify(out)[0]
    shutil.copy(photos / "down" / "00.png", photos / "across" / "new.png")
    again, said = direct(photos)
    assert again != out
    assert "1 new (across/new.png), 1 gone (down/02.jpg), 1 changed (across/03.png)" in said
    assert verify(again) == []


def test_bytes_that_changed_behind_the_files_time_are_noticed(photos: Path) -> None:
    out, _ = direct(photos)
    for path in sorted(photos.rglob("*.png")):
        before, data = path.stat(), bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataError, match="is damaged"):
        batches(out)


def test_processes_of_one_job_make_one_index(photos: Path, cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(direct, [photos] * 4))
    assert len({out for out, _ in found}) == 1
    assert sum("indexing" in said for _, said in found) == 1


@pytest.mark.parametrize("kind", ["zip", "webdataset", "imagenet", "parquet", "table"])
def test_images_of_every_source_are_trained_on_where_they_lie(kind: str, image_folder: Path, tmp_path: Path) -> None:
    photos = {
        str(path.relative_to(image_folder)): path.read_bytes() for path in sorted(image_folder.rglob("*.jpg"))[:8]
    }
    path = material(kind, tmp_path / "in", photos)
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
            for name, data in photos.items():
                file.writestr(name, data)
    out, _ = direct(path)
    build(path, tmp_path / "shards", catalog=Catalog(), workers=1)
    for here, there in zip(batches(out), batches(tmp_path / "shards"), strict=True):
        assert torch.equal(here, there)


def test_what_is_no_folder_of_images_is_still_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no manifest.json, and its images cannot .* holds no image files"):
        direct(tmp_path / "empty")
    assert shards_of(tmp_path / "nowhere", Catalog()) == tmp_path / "nowhere"


def test_a_run_finds_its_index_again_and_makes_it_again_where_it_was_deleted(photos: Path, cache: Path) -> None:
    out, _ = direct(photos)
    about = {"shards": str(out), "read_from": str(photos)}
    assert shards_of_run(about, Catalog()) == out
    shutil.rmtree(cache)
    assert shards_of_run(about, Catalog(), Console(file=io.StringIO())) == out
    assert verify(out) == []
    assert shards_of_run({"shards": "gone"}, Catalog()) == Path("gone")


def test_other_commands_take_a_folder_of_images_too(photos: Path) -> None:
    done = CliRunner().invoke(_group, ["order", str(photos), "--head", "3"])
    assert done.exit_code == 0, done.output
    assert "across/" in done.output or "down/" in done.output


def test_the_format_keeps_the_contract_of_shards() -> None:
    testing.check_shard_format(Catalog().build("shards", "files", {}))


@pytest.mark.slow
def test_losses_are_bit_for_bit_those_of_the_shards_and_a_run_goes_on_with_either(photos: Path, tmp_path: Path) -> None:
    build(photos, tmp_path / "shards", catalog=Catalog(), workers=1)
    for name, folder in (("a", photos), ("b", tmp_path / "shards")):
        done = start(folder, tmp_path / name, tmp_path / f"{name}.log")
        assert done.returncode == 0, done.stderr[-3000:]
    assert rows(tmp_path / "a.log") == rows(tmp_path / "b.log")
    whole = rows(tmp_path / "a.log")
    assert len(whole) > 20
    start(photos, tmp_path / "c", tmp_path / "c1.log", death=7)
    done = start(tmp_path / "shards", tmp_path / "c", tmp_path / "c2.log")
    assert done.returncode == 0, done.stderr[-3000:]
    rest = rows(tmp_path / "c2.log")
    assert 0 < len(rest) < len(whole)
    assert rest == whole[-len(rest) :]


def test_shards_without_their_manifest_are_not_taken_for_tars_of_others(image_folder: Path, tmp_path: Path) -> None:
    """One of which may be missing as well: found by tests/test_faults.py, as 32 of 40 images without a word."""
    build(image_folder, tmp_path / "shards", catalog=Catalog(), workers=1, per_shard=7)
    (tmp_path / "shards" / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"holds train.index.safetensors but no manifest.json, .* copy them again"):
        shards_of(tmp_path / "shards", Catalog())
