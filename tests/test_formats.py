"""Both formats hold the same pictures, give the same bytes again, and are read by everybody's tools."""

from __future__ import annotations

import gc
import io
import json
import subprocess
import sys
import tarfile
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae_pipe.catalog import Catalog
from mae_pipe.data import decode
from mae_pipe.data.index import SampleIndex
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.sample import ENCODINGS, Placed, Sample, ShardFormat, Stored
from mae_pipe.errors import DataError, PluginError
from mae_pipe.sharding import build
from mae_pipe.verifying import verify
from tests.test_admit import photo, saved

FORMATS = ["webdataset", "ffcv"]


# webdataset leaves the files that it read to the garbage collector.
THEIR_FILES = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"
)


def storage(name: str) -> ShardFormat:
    if name == "ffcv":
        pytest.importorskip("ffcv", reason="ffcv is not installed")
    return Catalog().build("shards", name, {})


@pytest.fixture(params=FORMATS)
def format(request: pytest.FixtureRequest) -> ShardFormat:
    return storage(request.param)


def samples() -> Iterator[Sample]:
    """JPEG, PNG and WebP; colour and grey; with and without a label; short and long keys."""
    for number in range(12):
        encoding = ENCODINGS[number % 3]  # jpeg, png, webp
        size = (20 + number, 30)
        data = saved(photo("L" if number == 3 else "RGB", size), encoding.upper())
        yield Sample(f"{'k' * 12 * number}/{number}", data, encoding, *size, None if number == 5 else number)


@pytest.fixture(scope="module")
def built(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same 24 images in every format that is there."""
    folder = tmp_path_factory.mktemp("formats")
    done = {}
    for name in FORMATS:
        if name == "ffcv":
            try:
                Catalog().build("shards", name, {})
            except PluginError:
                continue
        build(image_folder, folder / name, format=name, catalog=Catalog(), workers=1, per_shard=10)
        done[name] = folder / name
    return done


def test_what_was_written_is_read(format: ShardFormat, tmp_path: Path) -> None:
    path = tmp_path / f"x{format.suffix}"
    places = format.write(path, samples())
    reader = format.open(path)
    for number, (sample, placed) in enumerate(zip(samples(), places, strict=True)):
        data = reader.read(number, placed)
        assert len(data) == placed.size
        assert zlib.crc32(data) == placed.crc32
        assert path.read_bytes()[placed.offset : placed.offset + placed.size] == data
        if sample.encoding == "jpeg" or placed.encoding != "raw":
            assert bytes(data) == sample.image
        seen = decode.picture(Stored(data, placed.encoding, sample.width, sample.height))
        original = decode.picture(Stored(sample.image, sample.encoding, sample.width, sample.height))
        assert np.array_equal(np.asarray(seen), np.asarray(original))
    reader.close()


def test_the_same_samples_give_the_same_bytes(format: ShardFormat, tmp_path: Path) -> None:
    assert format.write(tmp_path / "a", samples()) == format.write(tmp_path / "b", samples())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_threads_read_at_the_same_time(format: ShardFormat, tmp_path: Path) -> None:
    places = format.write(tmp_path / "a", samples())
    reader = format.open(tmp_path / "a")
    wrong: list[int] = []

    def read_all() -> None:
        for _ in range(50):
            for number, placed in enumerate(places):
                if zlib.crc32(reader.read(number, placed)) != placed.crc32:
                    wrong.append(number)

    threads = [threading.Thread(target=read_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_closing_while_an_image_is_looked_at_harms_nobody(format: ShardFormat, tmp_path: Path) -> None:
    places = format.write(tmp_path / "a", samples())
    reader = format.open(tmp_path / "a")
    data = reader.read(0, places[0])
    reader.close()
    assert zlib.crc32(data) == places[0].crc32


@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "head"])
def test_a_damaged_shard_is_a_sentence_that_names_it(format: ShardFormat, tmp_path: Path, damage: str) -> None:
    path = tmp_path / f"x{format.suffix}"
    places = format.write(path, samples())
    data = path.read_bytes()
    changed = {"cut": data[: places[-1].offset - 1], "empty": b"", "head": b"\xff" * 4000}
    path.unlink()
    if damage != "missing":
        path.write_bytes(changed[damage])

    def read_all() -> None:
        reader = format.open(path)
        for number, placed in enumerate(places):
            reader.read(number, placed)

    with pytest.raises(DataError, match=rf"{path.name}.*mae-pipe verify"):
        read_all()


def test_both_formats_hold_the_same_pictures_and_the_same_jpeg_bytes(built: dict[str, Path]) -> None:
    if set(built) != set(FORMATS):
        pytest.skip("ffcv is not installed")
    held = {}
    for name, folder in built.items():
        split = Manifest.load(folder).splits["train"]
        index = SampleIndex.load(folder, split.index)
        form = Catalog().build("shards", name, {})
        readers = [form.open(folder / shard.name) for shard in split.shards]
        pictures = []
        for row in range(len(index)):
            placed = index.placed(row)
            data = bytes(readers[int(index.shard[row])].read(row % 10, placed))
            size = int(index.width[row]), int(index.height[row])
            pixels = np.asarray(decode.picture(Stored(data, placed.encoding, *size)))
            pictures.append((index.key(row), int(index.label[row]), placed.encoding, data, pixels))
        held[name] = pictures
    for ours, theirs in zip(held["webdataset"], held["ffcv"], strict=True):
        assert ours[:2] == theirs[:2]
        assert np.array_equal(ours[4], theirs[4])
        assert theirs[2] == ("jpeg" if ours[2] == "jpeg" else "raw")
        if ours[2] == "jpeg":
            assert ours[3] == theirs[3]


def test_builds_in_ffcv_are_the_same_with_any_number_of_workers(
    built: dict[str, Path], image_folder: Path, tmp_path: Path
) -> None:
    if "ffcv" not in built:
        pytest.skip("ffcv is not installed")
    build(image_folder, tmp_path / "out", format="ffcv", catalog=Catalog(), workers=2, per_shard=10)
    names = sorted(path.name for path in built["ffcv"].iterdir())
    assert names == sorted(path.name for path in (tmp_path / "out").iterdir())
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (built["ffcv"] / name).read_bytes()
    assert verify(tmp_path / "out") == []


def test_verify_names_the_damaged_image_in_a_beton(built: dict[str, Path], tmp_path: Path) -> None:
    if "ffcv" not in built:
        pytest.skip("ffcv is not installed")
    split = Manifest.load(built["ffcv"]).splits["train"]
    index = SampleIndex.load(built["ffcv"], split.index)
    for path in built["ffcv"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with (tmp_path / split.shards[1].name).open("r+b") as file:
        file.seek(index.placed(13).offset + 5)
        file.write(b"\0\0\0")
    (damage,) = verify(tmp_path)
    assert damage.endswith(f"1 of its 10 images is damaged: {index.key(13)}")


def test_tar_lists_the_members_of_a_shard(built: dict[str, Path]) -> None:
    path = built["webdataset"] / "train-000000.tar"
    listed = subprocess.run(["tar", "tvf", str(path)], check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(listed) == 20
    assert listed[0].endswith(" across/01.jpg")
    assert listed[1].endswith(" across/01.cls")
    with tarfile.open(path) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.isreg()) for m in tar} == {(0, 0, 0, "", "", True)}


@THEIR_FILES
def test_plain_webdataset_reads_the_tars(built: dict[str, Path], image_folder: Path) -> None:
    import webdataset

    urls = sorted(str(path) for path in built["webdataset"].glob("train-*.tar"))
    seen = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("jpg;png", "cls", "__key__"))
    gc.collect()
    assert len(seen) == 24
    for picture, label, key in seen:
        (original,) = image_folder.glob(f"{key}.*")
        assert np.array_equal(np.asarray(picture), np.asarray(Image.open(original).convert("RGB")))
        assert label == sorted(path.name for path in image_folder.iterdir()).index(key.partition("/")[0])


@THEIR_FILES
def test_timm_reads_the_tars(built: dict[str, Path]) -> None:
    from timm.data.dataset_factory import create_dataset

    with warnings.catch_warnings(action="ignore"):
        dataset = create_dataset("wds/mae-pipe", root=str(built["webdataset"]), split="train", is_training=False)
        seen = list(dataset)
        gc.collect()
    assert len(dataset) == len(seen) == 24
    assert sorted(label for _, label in seen) == [0] * 12 + [1] * 12


@THEIR_FILES
def test_wids_reads_any_sample_of_the_tars(built: dict[str, Path], tmp_path: Path) -> None:
    wids = pytest.importorskip("wids")
    with warnings.catch_warnings(action="ignore"):
        dataset = wids.ShardListDataset(
            str(built["webdataset"] / "wids-train.json"), cache_dir=str(tmp_path), keep=True
        )
        seen = [dataset[number] for number in (23, 0, 11)]
        gc.collect()
    index = SampleIndex.load(built["webdataset"], Manifest.load(built["webdataset"]).split("train").index)
    assert len(dataset) == 24
    assert [sample["__key__"].removeprefix("./") for sample in seen] == [index.key(number) for number in (23, 0, 11)]
    assert [int(sample[".cls"]) for sample in seen] == index.label[[23, 0, 11]].tolist()


def test_open_clip_finds_how_many_samples_each_tar_has(built: dict[str, Path]) -> None:
    sizes = json.loads((built["webdataset"] / "sizes.json").read_text())
    counted = {}
    for path in built["webdataset"].glob("*.tar"):
        with tarfile.open(path) as tar:
            counted[path.name] = sum(name.endswith(".cls") for name in tar.getnames())
    assert sizes == counted
    assert sum(sizes.values()) == 24


STOCK_LOADER = """
import sys
import numpy as np
from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption

# All of the area as a square: where its tries do not find one, it takes the largest in the centre.
decoder = RandomResizedCropRGBImageDecoder((16, 16), scale=(1, 1), ratio=(1, 1))
pipelines = {"image": [decoder], "label": [IntDecoder()]}
loader = Loader(
    sys.argv[1], batch_size=5, num_workers=1, order=OrderOption.SEQUENTIAL, drop_last=False, pipelines=pipelines
)
batches = [(images.copy(), labels[:, 0].copy()) for images, labels in loader]
np.savez(sys.argv[2], images=np.concatenate([b[0] for b in batches]), labels=np.concatenate([b[1] for b in batches]))
"""


def test_ffcvs_own_loader_reads_the_betons(tmp_path: Path) -> None:
    storage("ffcv").write(tmp_path / "x.beton", samples())
    # In a process of its own, as numba's finalizers complain long afterwards.
    command = [sys.executable, "-c", STOCK_LOADER, str(tmp_path / "x.beton"), str(tmp_path / "seen.npz")]
    subprocess.run(command, check=True, capture_output=True)
    with np.load(tmp_path / "seen.npz") as arrays:
        images, labels = arrays["images"], arrays["labels"]
    assert labels.tolist() == [-1 if sample.label is None else sample.label for sample in samples()]
    assert images.shape == (12, 16, 16, 3)
    for sample, seen in zip(samples(), images, strict=True):
        picture = decode.picture(Stored(sample.image, sample.encoding, sample.width, sample.height))
        assert isinstance(picture, Image.Image)
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side)).resize((16, 16), Image.Resampling.BOX)
        # ffcv averages areas as BOX does, but its square may be moved by a pixel: up to 8 levels in these pictures.
        assert np.abs(np.asarray(square).astype(int) - seen.astype(int)).mean() < 8, sample.key


STOCK_LOADER_OF_BYTES = """
import sys
import numpy as np
from ffcv.fields.bytes import BytesDecoder
from ffcv.fields.decoders import IntDecoder
from ffcv.loader import Loader, OrderOption

fields = ("image", "label", "labels", "map")
pipelines = {name: [IntDecoder() if name == "label" else BytesDecoder()] for name in fields}
loader = Loader(sys.argv[1], batch_size=5, num_workers=1, order=OrderOption.SEQUENTIAL, pipelines=pipelines)
(batch,) = ([part.copy() for part in batch] for batch in loader)
np.savez(sys.argv[2], **dict(zip(fields, batch)))
"""


def of_six_channels() -> Iterator[Sample]:
    """With a list of classes, and a map."""
    draw = np.random.default_rng(0)
    for number in range(5):
        file = io.BytesIO()
        np.save(file, draw.integers(0, 256, (8, 9 + number, 6), dtype=np.uint8))
        map_ = saved(Image.fromarray(draw.integers(0, 9, (8, 9 + number), dtype=np.uint8)), "PNG")
        several = tuple(range(number))
        yield Sample(f"a/{number}", file.getvalue(), "npy", 9 + number, 8, None, 6, several, map_)


def test_images_of_many_channels_lists_of_classes_and_maps_are_read_as_written(
    format: ShardFormat, tmp_path: Path
) -> None:
    places = format.write(tmp_path / "x", of_six_channels())
    assert format.write(tmp_path / "y", of_six_channels()) == places
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    reader = format.open(tmp_path / "x")
    for number, (sample, placed) in enumerate(zip(of_six_channels(), places, strict=True)):
        assert placed.map is not None
        assert reader.read(number, placed) == sample.image
        assert reader.read_map(number, placed.map) == sample.map
        assert zlib.crc32(sample.map or b"") == placed.map.crc32
        assert (placed.encoding, placed.map.encoding) == ("npy", "png")
    with pytest.raises(DataError, match="mae-pipe verify"):
        reader.read_map(4, Placed(10**9, 7, 0, "png"))


def test_ffcvs_own_loader_reads_many_channels_lists_of_classes_and_maps(tmp_path: Path) -> None:
    storage("ffcv").write(tmp_path / "x.beton", of_six_channels())
    command = [sys.executable, "-c", STOCK_LOADER_OF_BYTES, str(tmp_path / "x.beton"), str(tmp_path / "seen.npz")]
    subprocess.run(command, check=True, capture_output=True)
    with np.load(tmp_path / "seen.npz") as seen:
        for number, sample in enumerate(of_six_channels()):
            assert seen["image"][number].tobytes()[: len(sample.image)] == sample.image
            assert seen["map"][number].tobytes()[: len(sample.map or b"")] == sample.map
            assert seen["label"][number, 0] == -1
            text = seen["labels"][number].tobytes().partition(b"\0")[0]  # as ffcv's JSONField.unpack does
            assert json.loads(text) == {"labels": list(range(number))}


@THEIR_FILES
def test_plain_webdataset_reads_many_channels_lists_of_classes_and_maps(tmp_path: Path) -> None:
    import webdataset

    storage("webdataset").write(tmp_path / "x.tar", of_six_channels())
    seen = list(webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False).decode("l8"))
    gc.collect()
    for sample, found in zip(of_six_channels(), seen, strict=True):
        assert np.array_equal(found["npy"], np.load(io.BytesIO(sample.image)))
        assert np.array_equal(found["seg.png"], np.asarray(Image.open(io.BytesIO(sample.map or b""))))
        assert (found["__key__"], found["json"]) == (sample.key, {"labels": list(sample.labels or ())})


def test_a_large_image_gets_pages_that_it_fits_in(tmp_path: Path) -> None:
    form = storage("ffcv")
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), dtype=np.uint8)  # 9 MB raw, above ffcv's default
    sample = Sample("big", saved(Image.fromarray(noise), "PNG", compress_level=0), "png", 2000, 1500, 0)
    places = form.write(tmp_path / "x.beton", [sample])
    assert bytes(form.open(tmp_path / "x.beton").read(0, places[0])) == noise.tobytes()


def test_a_failure_in_the_middle_ends_the_write_instead_of_hanging(format: ShardFormat, tmp_path: Path) -> None:
    def some() -> Iterator[Sample]:
        yield next(samples())
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="the disk went away"):
        format.write(tmp_path / "x", some())


def test_an_error_inside_ffcvs_writer_ends_the_write_instead_of_hanging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = storage("ffcv")
    from ffcv.memory_allocator import MemoryAllocator

    def fail(self: object, size: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(MemoryAllocator, "malloc", fail)
    with pytest.raises(OSError, match="no space"):
        form.write(tmp_path / "x", samples())


def test_without_ffcv_its_format_is_a_sentence_and_files_are_still_checked(
    built: dict[str, Path], image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ffcv" else real(name, *rest))
    with pytest.raises(PluginError, match=r"ffcv is not installed; install it with: .*libopencv-dev.*mae-pipe\[ffcv\]"):
        build(image_folder, tmp_path / "out", format="ffcv", catalog=Catalog())
    assert not (tmp_path / "out").exists()
    if "ffcv" in built:
        assert verify(built["ffcv"]) == []


def test_an_unknown_format_is_a_sentence_with_the_nearest(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="did you mean 'webdataset'"):
        build(image_folder, tmp_path / "out", format="webdatset", catalog=Catalog())


def test_a_format_that_breaks_its_contract_is_named(image_folder: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "forgetful.py"
    plugin.write_text(
        "from mae_pipe.api import plugin\n"
        "from mae_pipe_shards.tar import Tar\n\n\n"
        '@plugin("forgetful")\nclass Forgetful(Tar):\n    """Forgets."""\n\n'
        "    def write(self, path, samples):\n        return super().write(path, samples)[1:]\n"
    )
    with pytest.raises(PluginError, match=r"'forgetful' returned 23 places for 24 samples"):
        build(image_folder, tmp_path / "out", format="forgetful", catalog=Catalog((plugin,)), workers=1)


def test_a_format_that_reads_something_else_than_it_wrote_is_found_at_once(image_folder: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "shifted.py"
    plugin.write_text(
        "from dataclasses import replace\n"
        "from mae_pipe.api import plugin\n"
        "from mae_pipe_shards.tar import Tar\n\n\n"
        '@plugin("shifted")\nclass Shifted(Tar):\n    """Shifts."""\n\n'
        "    def write(self, path, samples):\n"
        "        return [replace(p, offset=p.offset + 1) for p in super().write(path, samples)]\n"
    )
    with pytest.raises(PluginError, match=r"'shifted' does not read 'across/01' as it wrote it"):
        build(image_folder, tmp_path / "out", format="shifted", catalog=Catalog((plugin,)), workers=1)
    assert not list((tmp_path / "out").glob("train-*"))


def test_places_beyond_the_file_are_refused(tmp_path: Path) -> None:
    form = storage("webdataset")
    form.write(tmp_path / "x.tar", samples())
    with pytest.raises(DataError, match="it ends before byte 1000000005"):
        form.open(tmp_path / "x.tar").read(0, Placed(10**9, 5, 0, "jpeg"))
