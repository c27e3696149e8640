"""Images of any number of channels: nothing is guessed, nothing is lost on the way to a batch."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.cli import _group
from mae_pipe.data import arrays, decode
from mae_pipe.data.admit import Wishes, admit
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.order import Share
from mae_pipe.data.refusal import Refusal
from mae_pipe.data.sample import Stored
from mae_pipe.data.stream import open_stream
from mae_pipe.errors import DataError
from mae_pipe.sharding import build
from mae_pipe.verifying import verify
from tests.test_admit import photo, png, saved
from tests.test_formats import THEIR_FILES

DRAW = np.random.default_rng(0)


def npy(array: NDArray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=array.dtype.hasobject)
    return out.getvalue()


def noise(*shape: int, dtype: str = "uint8") -> NDArray:
    return DRAW.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def held(data: bytes, channels: int, **wishes: object) -> NDArray:
    """[H, W, C] as training sees them."""
    image = admit(data, Wishes(channels=channels, **wishes))  # type: ignore[arg-type]
    stored = Stored(image.image, image.encoding, image.width, image.height)
    pixels = np.asarray(decode.picture(stored, channels))
    assert pixels.shape[:2] == (image.height, image.width)
    flat = pixels.reshape(-1, channels).astype(int)
    assert image.sums.pixels == len(flat)
    assert list(image.sums.values) == flat.sum(0).tolist()
    assert list(image.sums.squares) == (flat**2).sum(0).tolist()
    return pixels.reshape(*pixels.shape[:2], channels)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 13])
@pytest.mark.parametrize("first", [False, True])
def test_an_array_of_8_bits_is_kept_number_for_number(channels: int, first: bool) -> None:
    pixels = noise(9, 11, channels)
    file = npy(np.ascontiguousarray(pixels.transpose(2, 0, 1)) if first else pixels)
    assert np.array_equal(held(file, channels), pixels)
    assert admit(file, Wishes(channels=channels)).encoding == ("png" if channels in (1, 3, 4) else "npy")


def test_grey_arrays_may_be_flat_and_columns_may_come_first() -> None:
    assert np.array_equal(held(npy(pixels := noise(9, 11)), 1)[..., 0], pixels)
    assert np.array_equal(held(npy(np.asfortranarray(pixels := noise(9, 11, 6))), 6), pixels)


@pytest.mark.parametrize(
    ("format", "mode"),
    [*(("JPEG", m) for m in ("L", "RGB", "CMYK")), *(("PNG", m) for m in ("L", "RGB", "RGBA")), ("WEBP", "RGBA")],
)
def test_image_files_of_the_wanted_channels_are_kept_byte_for_byte(format: str, mode: str) -> None:
    picture = photo("RGB").convert(mode)
    if mode == "RGBA":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    data = saved(picture, format, **({"lossless": True, "exact": True} if format == "WEBP" else {}))
    channels = len(picture.getbands())
    image = admit(data, Wishes(channels=channels))
    assert (image.image, image.converted) == (data, ())
    if format != "JPEG":
        assert np.array_equal(held(data, channels), np.asarray(picture).reshape(*picture.size[::-1], channels))
    else:
        assert (
            np.abs(
                held(data, channels).astype(int) - np.asarray(Image.open(io.BytesIO(data))).reshape(32, 48, -1)
            ).max()
            == 0
        )


def test_grey_stays_grey_and_colour_files_that_are_grey_become_it() -> None:
    grey = photo("L")
    for data in (
        saved(grey.convert("RGB"), "PNG"),
        saved(grey.convert("RGB"), "WEBP", lossless=True),
        saved(grey, "BMP"),
    ):
        assert np.array_equal(held(data, 1)[..., 0], np.asarray(grey))
    with pytest.raises(Refusal, match="wrong channels: 3, not 1"):
        admit(saved(photo(), "PNG"), Wishes(channels=1))


@pytest.mark.parametrize(
    ("data", "channels", "reason"),
    [
        (saved(photo(), "PNG"), 4, "wrong channels: 3, not 4"),
        (saved(photo(), "JPEG"), 6, "wrong channels: 3, not 6"),
        (saved(photo("L"), "PNG"), 13, "wrong channels: 1, not 13"),
        (npy(noise(4, 5, 6)), 13, "wrong channels: an array of 4 x 5 x 6, not of 13 channels"),
        (npy(noise(4, 5)), 3, "wrong channels: an array of 4 x 5, not of 3 channels"),
        (npy(noise(4, 5, 6, 1)), 6, "wrong channels: an array of 4 x 5 x 6 x 1"),
        (npy(noise(0, 5, 6)), 6, "without pixels"),
        (npy(noise(4, 5, 6, dtype="int16")), 6, "int16 values, whose range is not known; give --value-range"),
        (npy(np.full((4, 5, 6), np.nan)), 6, "whose range is not known"),
        (npy(np.array([[{}]])), 6, "an array of object"),
        (npy(np.zeros((4, 5, 6), "datetime64[s]")), 6, "not of numbers"),
        (npy(noise(4, 5, 6))[:-3], 6, "truncated"),
        (npy(noise(4, 5, 6)) + b"more", 6, "another number of bytes"),
        (npy(noise(4, 5, 6)).replace(b"(4, 5, 6)", b"(4, 5,9**9)"), 6, "damaged"),
        (arrays.MAGIC + bytes(40), 6, "version 0.0"),
        (arrays.MAGIC + b"\1\0\5\0abc", 6, "damaged"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(data: bytes, channels: int, reason: str) -> None:
    with pytest.raises(Refusal, match=reason):
        admit(data, Wishes(channels=channels))


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "float32", "float64", ">f4", ">u2"])
def test_values_are_mapped_from_their_range_and_clipped(dtype: str) -> None:
    values = np.array([-100, 0, 1, 500, 999, 1000, 4000]).clip(0 if "u" in dtype else -100).astype(dtype)
    pixels = held(npy(np.tile(values[:, None, None], (1, 2, 6))), 6, values=(0.0, 1000.0))
    assert pixels[:, 0, 0].tolist() == np.rint(values.clip(0, 1000).astype(float) * 255 / 1000).tolist()
    image = admit(npy(np.tile(values[:, None, None], (1, 2, 6))), Wishes(channels=6, values=(0.0, 1000.0)))
    assert image.converted == ("npy", np.dtype(dtype).name)


def test_16_bits_without_a_range_are_all_of_them_and_8_bits_have_none() -> None:
    deep = noise(4, 5, 6, dtype="uint16")
    assert np.array_equal(held(npy(deep), 6), np.round(deep / 257))
    assert np.array_equal(held(npy(deep.astype(">u2")), 6), np.round(deep / 257))
    shallow = noise(4, 5, 6)
    assert np.array_equal(held(npy(shallow), 6, values=(0.0, 10.0)), shallow)


def test_values_that_are_not_finite_are_refused() -> None:
    for bad in (np.nan, np.inf):
        with pytest.raises(Refusal, match="not finite"):
            admit(npy(np.full((4, 5, 6), bad, "float32")), Wishes(channels=6, values=(0.0, 1.0)))


def test_deep_png_files_are_mapped_too() -> None:
    values = np.linspace(0, 4095, 48 * 32).astype(np.uint16).reshape(32, 48)
    grey = held(saved(Image.fromarray(values), "PNG"), 1, values=(0.0, 4095.0))
    assert np.array_equal(grey[..., 0], np.rint(values * 255.0 / 4095))
    deep = noise(32, 48, 4, dtype="uint16")
    file = png(48, 32, 16, 6, b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep))
    assert np.array_equal(held(file, 4), np.round(deep / 257))


def test_shrinking_treats_every_channel_alike_and_takes_none_for_opacity() -> None:
    for channels in (4, 6):
        pixels = noise(40, 60, channels)
        pixels[..., 3] = 0  # what is transparent would lose its colour
        small = held(npy(pixels), channels, max_side=30)
        for band in range(channels):
            alone = Image.fromarray(np.ascontiguousarray(pixels[..., band])).resize((30, 20), Image.Resampling.BICUBIC)
            assert np.array_equal(small[..., band], np.asarray(alone))


LAYOUTS: dict[str, Callable[[NDArray], tuple[NDArray, dict]]] = {
    "interleaved": lambda a: (a, {"photometric": "minisblack", "planarconfig": "contig"}),
    "planes": lambda a: (a.transpose(2, 0, 1), {"photometric": "minisblack", "planarconfig": "separate"}),
    "pages": lambda a: (a.transpose(2, 0, 1), {"photometric": "minisblack"}),
    "tiles": lambda a: (a, {"photometric": "minisblack", "planarconfig": "contig", "tile": (16, 16)}),
    "deflate": lambda a: (a, {"photometric": "minisblack", "planarconfig": "contig", "compression": "zlib"}),
    "lzw": lambda a: (a, {"photometric": "minisblack", "planarconfig": "contig", "compression": "lzw", "predictor": 2}),
    "big": lambda a: (a, {"photometric": "minisblack", "planarconfig": "contig", "byteorder": ">"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [2, 4, 13])
def test_tiffs_of_every_layout_give_the_same_pixels(layout: str, channels: int) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    if layout == "lzw":
        pytest.importorskip("imagecodecs", reason="imagecodecs is not installed")
    deep = noise(20, 30, channels, dtype="uint16")
    array, options = LAYOUTS[layout](deep)
    out = io.BytesIO()
    byteorder = options.pop("byteorder", "<")
    tifffile.imwrite(out, np.ascontiguousarray(array), byteorder=byteorder, **options)
    data = out.getvalue()
    assert np.array_equal(held(data, channels), np.round(deep / 257))
    mapped = held(data, channels, values=(0.0, 10_000.0))
    assert np.array_equal(mapped, np.rint(deep.clip(0, 10_000) * 255.0 / 10_000))
    with pytest.raises(Refusal, match="wrong channels"):
        admit(data, Wishes(channels=6))
    with pytest.raises(Refusal):
        admit(data[: len(data) // 3], Wishes(channels=channels))


def test_without_tifffile_many_bands_are_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    (tmp_path / "in").mkdir()
    photo().save(tmp_path / "in" / "x.tif")
    with pytest.raises(DataError, match=r"TIFF files of 6 channels need tifffile; install it with: .*mae-pipe\[tiff\]"):
        build(tmp_path / "in", tmp_path / "out", catalog=Catalog(), workers=1, channels=6)


# From a folder to a batch


def folder_of(path: Path, channels: int, count: int = 7) -> Path:
    """Two classes of arrays, as .npy files where no PNG holds them."""
    for number in range(count):
        pixels = noise(20 + number, 30, channels)
        place = path / "ab"[number % 2] / str(number)
        place.parent.mkdir(parents=True, exist_ok=True)
        if channels in (1, 4):
            Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(place.with_suffix(".png"))
        else:
            np.save(place.with_suffix(".npy"), pixels)
    return path


def original(path: Path, key: str) -> NDArray:
    (file,) = path.glob(f"{key}.*")
    pixels = np.load(file) if file.suffix == ".npy" else np.asarray(Image.open(file))
    return pixels.reshape(*pixels.shape[:2], -1)


@pytest.mark.parametrize("format", ["webdataset", "ffcv"])
@pytest.mark.parametrize("channels", [1, 4, 6, 13])
def test_a_folder_becomes_batches_of_its_channels(tmp_path: Path, channels: int, format: str) -> None:
    if format == "ffcv":
        pytest.importorskip("ffcv", reason="ffcv is not installed")
    source, out = folder_of(tmp_path / "in", channels), tmp_path / "out"
    manifest = build(source, out, format=format, catalog=Catalog(), workers=1, per_shard=4, channels=channels)
    split = manifest.splits["train"]
    assert (manifest.version, manifest.channels, split.images, manifest.classes) == (3, channels, 7, ["a", "b"])
    assert verify(out) == []
    flat = np.concatenate([original(source, f"{'ab'[n % 2]}/{n}").reshape(-1, channels) for n in range(7)]) / 255
    assert split.statistics.mean == pytest.approx(flat.mean(0).tolist(), abs=1e-12)
    assert split.statistics.std == pytest.approx(flat.std(0).tolist(), abs=1e-9)
    data = recipe.Data(size=(16, 24), mean=(0.5,) * channels, std=(0.2,) * channels, crop="centre", flip=0.0, workers=0)
    stream = open_stream(out, "train", data, seed=0, share=Share(micro_batch=7), catalog=Catalog(), training=False)
    batch = next(stream.once())
    assert batch.pixels.shape == (7, channels, 16, 24)
    for number, pixels in zip(batch.numbers.tolist(), batch.pixels, strict=True):
        whole = original(source, stream.index.key(number))
        for band in range(channels):
            seen = decode.centred(Image.fromarray(np.ascontiguousarray(whole[..., band])), (16, 24), data.centre_share)
            assert np.array_equal(pixels[band], seen[..., 0])
    stream.close()


def test_both_formats_and_any_number_of_workers_give_the_same_batches(tmp_path: Path) -> None:
    pytest.importorskip("ffcv", reason="ffcv is not installed")
    source = folder_of(tmp_path / "in", 6)
    data = recipe.Data(size=16, mean=(0.5,) * 6, std=(0.2,) * 6, workers=1)
    seen = []
    for name in ("webdataset", "ffcv"):
        build(source, tmp_path / name, format=name, catalog=Catalog(), workers=1, per_shard=3, channels=6)
        stream = open_stream(tmp_path / name, "train", data, seed=3, share=Share(micro_batch=7), catalog=Catalog())
        batches = stream.batches()
        seen.append(next(batches))
        batches.close()  # type: ignore[attr-defined]
    assert torch.equal(seen[0].pixels, seen[1].pixels)
    build(source, tmp_path / "two", catalog=Catalog(), workers=2, per_shard=3, channels=6)
    for path in (tmp_path / "two").iterdir():
        assert path.read_bytes() == (tmp_path / "webdataset" / path.name).read_bytes()


@THEIR_FILES
def test_plain_webdataset_reads_many_channels(tmp_path: Path) -> None:
    import webdataset

    source = folder_of(tmp_path / "in", 13)
    build(source, tmp_path / "out", catalog=Catalog(), workers=1, channels=13)
    urls = [str(tmp_path / "out" / "train-000000.tar")]
    seen = list(webdataset.WebDataset(urls, shardshuffle=False).decode().to_tuple("npy", "cls", "__key__"))
    gc.collect()
    assert len(seen) == 7
    for pixels, _, key in seen:
        assert np.array_equal(pixels, original(source, key))


def test_arrays_are_images_only_where_channels_are_asked_for(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 3)
    photo().save(source / "a" / "photo.png")
    plain = build(source, tmp_path / "plain", catalog=Catalog(), workers=1)
    assert plain.splits["train"].images == 1
    assert {r.reason for r in plain.splits["train"].refused} == {"an array, which is read with --channels"}
    assert build(source, tmp_path / "all", catalog=Catalog(), workers=1, channels=3).splits["train"].images == 8


def test_wrong_files_are_named_in_the_manifest_and_stop_nothing(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 6)
    np.save(source / "a" / "seven.npy", noise(8, 8, 7))
    photo().save(source / "a" / "photo.jpg")
    split = build(source, tmp_path / "out", catalog=Catalog(), workers=1, channels=6).splits["train"]
    assert split.images == 7
    assert [(r.path, r.reason) for r in split.refused] == [
        ("a/photo.jpg", "wrong channels: 3, not 6"),
        ("a/seven.npy", "wrong channels: an array of 8 x 8 x 7, not of 6 channels"),
    ]


def test_a_folder_of_shards_holds_one_number_of_channels(tmp_path: Path) -> None:
    build(folder_of(tmp_path / "six", 6), tmp_path / "out", catalog=Catalog(), workers=1, channels=6)
    with pytest.raises(DataError, match="of 6 channels, not of 4"):
        build(
            folder_of(tmp_path / "four", 4), tmp_path / "out", catalog=Catalog(), workers=1, channels=4, splits=("val",)
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 4, "quality": 90}, "--quality is of JPEGs, which do not hold 4 channels"),
        ({"value_range": (1.0, 1.0)}, "--value-range 1 1 is not two rising numbers"),
        ({"value_range": (0.0, float("inf"))}, "not two rising numbers"),
    ],
)
def test_options_that_contradict_each_other_are_refused(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build(folder_of(tmp_path / "in", 1), tmp_path / "out", catalog=Catalog(), **options)
    assert not (tmp_path / "out").exists()


def test_manifests_of_version_1_are_still_read(image_folder: Path, tmp_path: Path) -> None:
    build(image_folder, tmp_path / "out", catalog=Catalog(), workers=1)
    path = tmp_path / "out" / "manifest.json"
    old = json.loads(path.read_text())
    old["version"] = 1
    for part, new in ((old, ("channels", "labelling", "map_classes")), (old["splits"]["train"], ("maps",))):
        for key in new:
            del part[key]
    path.write_text(json.dumps(old))
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.channels, manifest.labelling, manifest.map_classes) == (3, "class", [])
    assert verify(tmp_path / "out") == []
    data = recipe.Data(size=16, workers=0)
    stream = open_stream(tmp_path / "out", "train", data, seed=0, share=Share(micro_batch=2), catalog=Catalog())
    assert next(stream.batches()).pixels.shape == (2, 3, 16, 16)


def test_a_build_without_new_options_has_the_index_of_before(image_folder: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    build(image_folder, tmp_path / "out", catalog=Catalog(), workers=1, marks=False)
    with safe_open(tmp_path / "out" / "train.index.safetensors", "np") as file:
        names = {"shard", "offset", "size", "crc32", "encoding", "width", "height", "label", "key_ends", "key_bytes"}
        assert set(file.keys()) == names
        assert file.metadata() is None


def test_the_command_says_how_many_channels_there_are(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 13)
    arguments = ["shard", str(source), str(tmp_path / "out"), "--workers", "1", "--channels", "13"]
    result = CliRunner().invoke(_group, [*arguments, "--value-range", "0", "1"])
    assert result.exit_code == 0, result.output
    assert "train: 7 images of 13 channels and 2 classes in 1 webdataset shard, " in result.stdout
    options = Manifest.load(tmp_path / "out").options["train"]
    assert (options["channels"], options["value_range"]) == (13, [0.0, 1.0])


def test_what_is_stored_of_an_array_is_the_same_everywhere() -> None:
    pixels = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
    data = arrays.stored(pixels)
    assert hashlib.sha256(data).hexdigest() == hashlib.sha256(npy(pixels)).hexdigest(), "numpy.save's bytes"
    assert np.array_equal(arrays.parsed(data), pixels)


def tiff(array: NDArray) -> bytes:
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    out = io.BytesIO()
    tifffile.imwrite(out, array, photometric="minisblack", planarconfig="contig", compression="zlib")
    return out.getvalue()


@pytest.mark.parametrize("kind", ["npy", "tiff"])
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_is_done_to_a_file_it_is_refused_or_can_be_trained_on(kind: str, data: st.DataObject) -> None:
    pixels = np.arange(9 * 8 * 6, dtype=np.uint16).reshape(9, 8, 6)
    file = bytearray(npy(pixels) if kind == "npy" else tiff(pixels))
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = admit(bytes(file[: data.draw(st.integers(1, len(file)))]), Wishes(channels=6, values=(0.0, 500.0)))
    except Refusal:
        return
    seen = arrays.parsed(image.image)
    assert seen.shape == (image.height, image.width, 6)


@pytest.mark.parametrize(("wide", "reason"), [(60_000, "where 2.1 GB are allowed"), (9_000_000, "wrong channels")])
def test_a_tiff_that_claims_to_be_huge_is_refused_before_anything_is_decoded(wide: int, reason: str) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    data = bytearray(tiff(np.zeros((900, 8, 6))))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tag = file.pages[0].tags["ImageWidth"]
        assert tag.dtype == 4, "32 bits"
        data[tag.valueoffset : tag.valueoffset + 4] = wide.to_bytes(4, "little")
    with pytest.raises(Refusal, match=reason):
        admit(bytes(data), Wishes(channels=6))
