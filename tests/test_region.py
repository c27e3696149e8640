"""Views of images without decoding the rest of them have the pixels that Pillow gives, to the last bit."""

from __future__ import annotations

import io
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mae_pipe.data import crops, decode, planar, region
from mae_pipe.data.sample import Stored

native = pytest.importorskip("mae_pipe.data._native", reason="the C extension could not be built here")

SAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")
BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR


@pytest.fixture(autouse=True)
def all_vectors() -> Iterator[None]:
    """Every test ends with what the processor has."""
    yield
    native.vectors(9)


def pixels(width: int, height: int, seed: int = 0) -> np.ndarray:
    """[height, width, 3]: smooth shapes, noise and hard edges, so that every coefficient occurs."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((width, height), BICUBIC)
    image = np.asarray(coarse).astype(np.int16) + draw.integers(-40, 41, (height, width, 3))
    image[height // 3 : height // 2, width // 4 : width // 2] = draw.integers(0, 256, 3)
    return np.clip(image, 0, 255).astype(np.uint8)


def jpeg(array: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, "JPEG", **options)
    return out.getvalue()


def by_pillow(data: bytes, cut: crops.Cut, size: tuple[int, int], resampling: Image.Resampling, channels: int = 3):
    image = Image.open(io.BytesIO(data)).convert("RGB" if channels == 3 else "L")
    return decode.view(image, cut, size, resampling).transpose(2, 0, 1)


def by_region(
    data: bytes, cut: crops.Cut, size: tuple[int, int], resampling=BICUBIC, channels=3, marks: bytes | None = None
) -> np.ndarray | None:
    width, height = Image.open(io.BytesIO(data)).size
    out = np.full((channels, *size), 7, np.uint8)
    known = region.views(Stored(data, "jpeg", width, height), marks, [cut], [out[None]], resampling)
    return out if known else None


@st.composite
def cuts(draw: st.DrawFn, width: int, height: int, size: tuple[int, int]) -> crops.Cut:
    mirrored = draw(st.booleans())
    if draw(st.booleans()):
        left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        box = left, top, draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
        return crops.Cut(box, None, mirrored)
    cut = crops.fixed(
        width, height, size, draw(st.floats(0.3, 1)), (draw(st.floats(0, 0.99)), draw(st.floats(0, 0.99)))
    )
    return cut._replace(mirrored=mirrored)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_every_view_of_every_kind_of_jpeg_is_pillows(data: st.DataObject) -> None:
    draw = data.draw
    width, height = draw(st.integers(5, 90)), draw(st.integers(5, 90))
    options: dict[str, object] = {
        "quality": draw(st.integers(1, 100)),
        "subsampling": draw(st.sampled_from(SAMPLINGS)),
        "optimize": draw(st.booleans()),
    }
    if draw(st.booleans()):
        options |= {draw(st.sampled_from(["restart_marker_blocks", "restart_marker_rows"])): draw(st.integers(1, 9))}
    array = pixels(width, height, draw(st.integers(0, 99)))
    grey = draw(st.booleans()) and draw(st.booleans())
    encoded = jpeg(array[..., 0] if grey else array, **options)
    size = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    cut = draw(cuts(width, height, size))
    resampling = draw(st.sampled_from([BICUBIC, BILINEAR]))
    expected = by_pillow(encoded, cut, size, resampling)
    marks = region.marks_of(encoded)
    assert marks is not None
    for tier in (2, 1, 0):
        native.vectors(tier)
        for known in (None, marks):
            found = by_region(encoded, cut, size, resampling, marks=known)
            np.testing.assert_array_equal(found, expected, f"{options} {cut} {size} {tier} {known is not None}")


@pytest.mark.parametrize("sampling", ["440", "422", "420", "444", "Gray"])
def test_another_encoders_samplings_are_pillows(sampling: str) -> None:
    simplejpeg = pytest.importorskip("simplejpeg")
    array = pixels(57, 83)
    encoded = simplejpeg.encode_jpeg(array, quality=85, colorspace="RGB", colorsubsampling=sampling)
    for box in [(0, 0, 57, 83), (3, 17, 40, 50), (31, 33, 57, 83), (16, 16, 17, 17)]:
        cut = crops.Cut(box)
        for known in (None, region.marks_of(encoded)):
            found = by_region(encoded, cut, (24, 20), marks=known)
            np.testing.assert_array_equal(found, by_pillow(encoded, cut, (24, 20), BICUBIC))


def test_a_tall_crop_is_resized_in_pillows_order_of_passes() -> None:
    encoded = jpeg(pixels(60, 400), quality=95)
    for box in [(0, 0, 60, 400), (10, 0, 50, 390), (0, 100, 60, 250)]:
        found = by_region(encoded, crops.Cut(box), (32, 32))
        np.testing.assert_array_equal(found, by_pillow(encoded, crops.Cut(box), (32, 32), BICUBIC))


def test_a_very_wide_reach_is_pillows() -> None:
    encoded = jpeg(pixels(1500, 1200), quality=80)
    cut = crops.Cut((1, 2, 1499, 1200))
    for tier in (2, 1, 0):
        native.vectors(tier)
        np.testing.assert_array_equal(by_region(encoded, cut, (16, 16)), by_pillow(encoded, cut, (16, 16), BICUBIC))


def test_raw_pixels_are_viewed_as_pillow_does() -> None:
    array = pixels(70, 50)
    stored = Stored(array.tobytes(), "raw", 70, 50)
    for tier in (2, 1, 0):
        native.vectors(tier)
        for cut in (crops.Cut((3, 4, 61, 40), None, True), crops.centre(70, 50, (24, 24), 0.875)):
            out = np.empty((3, 24, 24), np.uint8)
            assert region.views(stored, None, [cut], [out[None]], BICUBIC)
            expected = decode.view(Image.fromarray(array), cut, (24, 24), BICUBIC).transpose(2, 0, 1)
            np.testing.assert_array_equal(out, expected)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_planes_are_viewed_as_their_reference_does(data: st.DataObject) -> None:
    draw = data.draw
    width, height = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    stored = Stored(planar.stored(Image.fromarray(pixels(width, height))), "yuv420", width, height)
    size = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    cut = draw(cuts(width, height, size))
    resampling = draw(st.sampled_from([BICUBIC, BILINEAR]))
    expected = planar.view(stored.data, width, height, cut, size, resampling).transpose(2, 0, 1)
    for tier in (2, 1, 0):
        native.vectors(tier)
        out = np.empty((3, *size), np.uint8)
        assert region.views(stored, None, [cut], [out[None]], resampling)
        np.testing.assert_array_equal(out, expected)


def test_planes_lie_close_to_the_picture() -> None:
    smooth = Image.fromarray(pixels(6, 6)).resize((161, 121), BICUBIC)
    stored = planar.stored(smooth)
    assert len(stored) == 161 * 121 + 2 * 81 * 61
    back = np.asarray(planar.picture(stored, 161, 121)).astype(float)
    assert np.abs(back - np.asarray(smooth)).mean() < 1.5
    cut = crops.Cut((11, 20, 150, 117))
    seen = planar.view(stored, 161, 121, cut, (64, 64), BICUBIC).astype(float)
    assert np.abs(seen - decode.view(smooth, cut, (64, 64), BICUBIC)).mean() < 1.0


def test_a_grey_jpeg_fills_one_channel_or_three_alike() -> None:
    encoded = jpeg(pixels(40, 40)[..., 1])
    one, three = (by_region(encoded, crops.Cut((2, 3, 30, 40)), (16, 16), channels=c) for c in (1, 3))
    assert one is not None
    assert three is not None
    np.testing.assert_array_equal(np.repeat(one, 3, axis=0), three)


@pytest.mark.parametrize("kind", ["progressive", "cmyk", "png", "lanczos", "colour as grey"])
def test_what_it_does_not_read_is_left_to_pillow(kind: str) -> None:
    array = pixels(40, 30)
    encoded = jpeg(array, progressive=kind == "progressive")
    if kind == "cmyk":
        out = io.BytesIO()
        Image.fromarray(array).convert("CMYK").save(out, "JPEG")
        encoded = out.getvalue()
    if kind == "png":
        out = io.BytesIO()
        Image.fromarray(array).save(out, "PNG")
        encoded = out.getvalue()
    resampling = Image.Resampling.LANCZOS if kind == "lanczos" else BICUBIC
    channels = 1 if kind == "colour as grey" else 3
    assert by_region(encoded, crops.Cut((0, 0, 40, 30)), (16, 16), resampling, channels) is None


PLACES = (((5, 6, 60, 41), (32, 32), (0, 0), False),)


def test_damage_is_an_error_or_a_picture_and_never_more(tmp_path: Path) -> None:
    draw = np.random.default_rng(5)
    kinds = [{"subsampling": s, **extra} for s in SAMPLINGS for extra in ({}, {"restart_marker_blocks": 3})]
    good = [jpeg(pixels(64, 48), quality=90, **kind) for kind in kinds]
    out = np.empty((3, 32, 32), np.uint8)
    outcomes = {"picture": 0, "left": 0, "refused": 0}
    for case in range(1500):
        data = bytearray(good[case % len(good)])
        marks = bytearray(native.marks(bytes(data)) or b"")
        for _ in range(int(draw.integers(1, 6))):
            data[int(draw.integers(0, len(data)))] = int(draw.integers(0, 256))
        if case % 3 == 0:
            del data[int(draw.integers(2, len(data))) :]
        if case % 4 == 0:
            marks[int(draw.integers(0, len(marks)))] ^= 1 << int(draw.integers(0, 8))
        try:
            read = native.view_jpeg(bytes(data), bytes(marks) if case % 2 else None, out[None], PLACES, 1, True)
            outcomes["picture" if read else "left"] += 1
        except ValueError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20, outcomes


@pytest.mark.parametrize(
    "change",
    [
        {"box": (0, 0, 65, 48)},
        {"box": (-1, 0, 60, 48)},
        {"box": (10, 10, 10, 20)},
        {"resized": (0, 32)},
        {"origin": (1, 0)},
        {"origin": (-1, 0)},
        {"filter": 3},
        {"out": np.empty((1, 2, 32, 32), np.uint8)},
        {"out": np.empty((2, 3, 32, 32), np.uint8)},
        {"out": np.empty((1, 3, 32, 32), np.uint16)},
        {"out": np.empty((3, 32, 32), np.uint8)},
    ],
)
def test_a_view_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    given: dict[str, object] = {
        "out": np.empty((1, 3, 32, 32), np.uint8),
        "box": (0, 0, 64, 48),
        "resized": (32, 32),
        "origin": (0, 0),
        "filter": 1,
    } | change
    with pytest.raises(ValueError, match=r"out must|lies? in|lie in|size|filter"):
        native.view_jpeg(
            jpeg(pixels(64, 48)),
            None,
            given["out"],
            ((given["box"], given["resized"], given["origin"], False),),
            given["filter"],
            True,
        )


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_several_views_of_one_decode_are_those_of_several(data: st.DataObject) -> None:
    draw = data.draw
    width, height = draw(st.integers(5, 120)), draw(st.integers(5, 120))
    encoded = jpeg(pixels(width, height), subsampling=draw(st.sampled_from(SAMPLINGS)))
    several, outs = [], []
    for _ in range(draw(st.integers(1, 3))):  # sizes
        size = draw(st.integers(1, 40)), draw(st.integers(1, 40))
        outs.append(np.empty((draw(st.integers(1, 4)), 3, *size), np.uint8))
        several += [draw(cuts(width, height, size)) for _ in outs[-1]]
    marks = region.marks_of(encoded) if draw(st.booleans()) else None
    assert region.views(Stored(encoded, "jpeg", width, height), marks, several, outs, BICUBIC)
    for cut, view in zip(several, (view for out in outs for view in out), strict=True):
        np.testing.assert_array_equal(view, by_pillow(encoded, cut, view.shape[1:], BICUBIC))


def test_checksums_are_zlibs() -> None:
    draw = np.random.default_rng(0)
    for tier in (2, 0):
        native.vectors(tier)
        for size in [*range(0, 200), 1000, 4096, 65537]:
            data = draw.integers(0, 256, size, dtype=np.uint8).tobytes()
            assert region.crc32(data) == zlib.crc32(data), size


def test_pillow_is_taken_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "from mae_pipe.data import region; print(region.decoder(), region.can_mark())"
    monkeypatch.setenv(region.VARIABLE, "pillow")
    asked = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True).stdout
    assert asked.startswith("Pillow ")
    assert asked.endswith("False\n")
    assert region.decoder().startswith("regions (C")
