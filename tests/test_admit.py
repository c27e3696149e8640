"""Every odd or bad image file is converted correctly or refused with a reason."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mae_pipe.data import decode
from mae_pipe.data.admit import Admitted, Wishes, admit
from mae_pipe.data.glance import ORIENTATION
from mae_pipe.data.refusal import Refusal
from mae_pipe.data.sample import Stored


def photo(mode: str = "RGB", size: tuple[int, int] = (48, 32)) -> Image.Image:
    """Smooth colours, so that JPEG keeps them well."""
    across, down = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([across, down, (across + down) / 2], 2).astype(np.uint8)).convert(mode)


def saved(picture: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, format, **options)
    return out.getvalue()


def pixels(image: Admitted) -> np.ndarray:
    """As training sees them, [H, W, 3]."""
    return np.asarray(decode.picture(Stored(image.image, image.encoding, image.width, image.height))).astype(int)


def close(image: Admitted, picture: Image.Image, most: float) -> bool:
    return bool(np.abs(pixels(image) - np.asarray(picture.convert("RGB")).astype(int)).max() <= most)


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG by hand: Pillow writes no 16-bit colour."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(("format", "encoding"), [("JPEG", "jpeg"), ("PNG", "png"), ("WEBP", "webp")])
def test_what_is_fine_is_kept_byte_for_byte(mode: str, format: str, encoding: str) -> None:
    data = saved(photo(mode), format)
    image = admit(data)
    assert (image.image, image.encoding, image.converted) == (data, encoding, ())
    assert (image.width, image.height) == (48, 32)


@pytest.mark.parametrize("options", [{"progressive": True}, {"optimize": True}, {"subsampling": 2}, {"comment": b"hi"}])
def test_every_usual_kind_of_jpeg_is_kept(options: dict) -> None:
    data = saved(photo(), "JPEG", **options)
    assert admit(data).image == data


def test_the_sums_are_those_of_the_stored_pixels() -> None:
    for data in (saved(photo(), "JPEG"), saved(photo("L"), "PNG"), saved(photo("CMYK"), "JPEG")):
        image = admit(data)
        seen = pixels(image).reshape(-1, 3)
        assert image.sums.pixels == len(seen)
        assert list(image.sums.values) == seen.sum(0).tolist()
        assert list(image.sums.squares) == (seen**2).sum(0).tolist()


def test_cmyk_becomes_rgb_with_the_right_colours() -> None:
    data = saved(photo("CMYK"), "JPEG", quality=95)  # Pillow writes it inverted, as Adobe does
    image = admit(data)
    assert image.converted == ("cmyk",)
    assert image.encoding == "jpeg"
    assert close(image, photo(), 12)


def test_grey_16_bit_is_scaled_and_not_clipped() -> None:
    values = np.linspace(0, 65535, 48 * 32).astype(np.uint16).reshape(32, 48)
    for format in ("PNG", "TIFF"):
        image = admit(saved(Image.fromarray(values), format))
        assert "16-bit" in image.converted
        assert np.array_equal(pixels(image)[..., 0], np.round(values / 257))


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4)])
def test_colour_16_bit_is_rounded_exactly(colour: int, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (32, 48, channels), dtype=np.uint16)
    if channels == 4:
        values[..., 3] = 65535
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    image = admit(png(48, 32, 16, colour, rows))
    assert image.converted[0] == "16-bit"
    assert image.encoding == "png"
    assert np.array_equal(pixels(image), np.round(values[..., :3] / 257))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_alpha_is_laid_on_white(mode: str, format: str) -> None:
    picture = Image.new(mode, (8, 8), (0,) * len(mode))  # black, and transparent
    picture.paste((200,) * (len(mode) - 1) + (255,), (0, 0, 4, 8))
    image = admit(saved(picture, format, lossless=True))
    assert image.converted == ("alpha",)
    assert (pixels(image)[:, 4:] == 255).all()
    assert (pixels(image)[:, :4] == 200).all()


def test_transparency_without_an_alpha_channel_is_seen() -> None:
    palette = photo().quantize(16)
    image = admit(saved(palette, "PNG", transparency=int(np.asarray(palette)[0, 0])))
    assert image.converted == ("alpha",)
    assert (pixels(image)[0, 0] == 255).all()


@pytest.mark.parametrize("mode", ["P", "1"])
def test_palettes_and_black_and_white_keep_their_colours(mode: str) -> None:
    picture = photo().quantize(16) if mode == "P" else photo().convert("1")
    image = admit(saved(picture, "PNG"))
    assert image.converted == ({"P": "palette", "1": "bilevel"}[mode],)
    assert close(image, picture, 0)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_kept(format: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
    data = saved(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)
    image = admit(data)
    assert "first frame" in image.converted
    assert close(image, frames[0], 0)
    Image.open(io.BytesIO(image.image)).seek(0)
    assert getattr(Image.open(io.BytesIO(image.image)), "n_frames", 1) == 1


@pytest.mark.parametrize("format", ["BMP", "TIFF", "GIF", "PPM"])
def test_other_lossless_files_become_png(format: str) -> None:
    picture = photo().quantize(16).convert("RGB") if format == "GIF" else photo()
    image = admit(saved(picture, format))
    assert (image.encoding, image.converted[0]) == ("png", format.lower())
    assert close(image, picture, 0)


@pytest.mark.parametrize("turn", range(2, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_photo_taken_sideways_is_turned_upright(turn: int, format: str) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[ORIENTATION] = turn
    data = saved(photo(), format, exif=exif.tobytes(), **({"lossless": True} if format == "WEBP" else {}))
    image = admit(data)
    assert "rotated" in image.converted
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert (image.width, image.height) == upright.size
    assert close(image, upright, 6 if format == "JPEG" else 0)
    assert Image.open(io.BytesIO(image.image)).getexif().get(ORIENTATION, 1) == 1, "it would be turned twice"


def test_a_damaged_exif_block_does_not_matter_and_warns_nobody() -> None:
    data = saved(photo(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01garbage")
    with warnings.catch_warnings(action="error"):
        assert admit(data).image == data


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_files_are_refused(format: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), format)
    with pytest.raises(Refusal, match=r"truncated|damaged|header"):
        admit(data[: int(len(data) * share)])


def test_a_jpeg_that_lacks_only_its_end_marker_is_mended() -> None:
    data = saved(photo(), "JPEG")
    image = admit(data[:-2])
    assert (image.image, image.converted) == (data, ("end marker added",))


def test_a_progressive_jpeg_that_is_cut_between_its_scans_is_refused_though_every_decoder_shows_it_whole() -> None:
    data = saved(photo(), "JPEG", progressive=True)
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    assert len(scans) > 5
    for at in scans[1:]:
        Image.open(io.BytesIO(data[:at] + b"\xff\xd9")).load()  # Pillow sees nothing
        with pytest.raises(Refusal, match="truncated"):
            admit(data[:at])


def test_padding_before_the_end_of_a_jpeg_is_removed() -> None:
    data = saved(photo(), "JPEG")
    image = admit(data[:-2] + bytes(8) + data[-2:])
    assert image.converted == ("padding removed",)
    assert close(image, Image.open(io.BytesIO(data)), 0)


def test_stray_bytes_between_the_header_segments_of_a_jpeg_are_removed() -> None:
    data = saved(photo(), "JPEG")
    at = data.index(b"\xff\xdb")
    image = admit(data[:at] + b"\x11\x22\x33" + data[at:])
    assert (image.image, image.converted) == (data, ("padding removed",))


def test_bytes_after_the_end_of_a_jpeg_do_not_matter() -> None:
    data = saved(photo(), "JPEG") + b"trailing bytes of a camera"
    assert admit(data).image == data


def test_damage_inside_a_jpeg_is_refused_though_decoders_would_go_on() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    data = bytearray(saved(Image.fromarray(noise), "JPEG"))
    middle = len(data) // 2
    data[middle : middle + 200] = np.random.default_rng(1).bytes(200).replace(b"\xff", b"\x01")
    Image.open(io.BytesIO(data)).load()  # Pillow sees nothing
    with pytest.raises(Refusal, match="damaged"):
        admit(bytes(data))


def test_a_flipped_bit_in_a_png_is_refused() -> None:
    data = bytearray(saved(photo(), "PNG"))
    data[len(data) // 2] ^= 4
    with pytest.raises(Refusal, match="damaged"):
        admit(bytes(data))


@pytest.mark.parametrize(
    "data", [b"", b"not an image at all", b"<html>404 not found</html>", b"\xff\xd8\xff", bytes(999)]
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(Refusal, match="zero bytes" if not data else "not an image"):
        admit(data)


def test_formats_that_run_programs_or_open_other_files_are_never_tried() -> None:
    with pytest.raises(Refusal, match="not an image"):
        admit(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")


@pytest.mark.parametrize(("width", "height"), [(30_000, 30_000), (8_001, 8_000), (65_000, 1_000)])
def test_a_bomb_is_refused_by_its_header_before_anything_is_decoded(width: int, height: int) -> None:
    data = png(width, height, 8, 2, bytes(64))
    with pytest.raises(Refusal, match="more than 64 megapixels"):
        admit(data)


def test_pixels_without_an_agreed_range_are_refused() -> None:
    for mode in ("F", "I"):
        with pytest.raises(Refusal, match="no agreed range"):
            admit(saved(Image.new(mode, (8, 8), 70_000), "TIFF"))


def test_max_side_and_short_side_shrink_and_never_enlarge() -> None:
    data = saved(photo(size=(400, 200)), "JPEG")
    sizes = {
        (100, None): (100, 50),
        (None, 100): (200, 100),
        (100, 100): (100, 50),
        (1000, 1000): (400, 200),
        (None, 200): (400, 200),
    }
    for (max_side, short_side), size in sizes.items():
        image = admit(data, Wishes(max_side=max_side, short_side=short_side))
        assert (image.width, image.height) == size
        assert image.converted == (() if size == (400, 200) else ("resized",))
    one = admit(saved(photo(size=(300, 2)), "PNG"), Wishes(max_side=10))
    assert (one.width, one.height) == (10, 1)


def test_quality_decides_how_jpegs_are_made_anew_and_makes_them_of_lossless_files() -> None:
    jpeg, lossless = saved(photo(), "JPEG"), saved(photo(), "PNG")
    assert admit(jpeg, Wishes(quality=50)).image == jpeg, "what is a JPEG is never encoded again without need"
    small, large = admit(lossless, Wishes(quality=50)), admit(lossless, Wishes(quality=95))
    assert small.converted == large.converted == ("to jpeg",)
    assert len(small.image) < len(large.image)
    assert close(large, photo(), 8)


def test_a_side_that_the_format_cannot_hold_is_refused() -> None:
    data = saved(Image.new("L", (70_000, 2)), "PNG")
    with pytest.raises(Refusal, match="more than the 65535"):
        admit(data, Wishes(limit=65535))
    assert admit(data, Wishes(limit=65535, max_side=1000)).width == 1000


FINE = {format: saved(photo(), format) for format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")}


@given(format=st.sampled_from(sorted(FINE)), data=st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_is_done_to_a_file_it_is_refused_or_can_be_trained_on(format: str, data: st.DataObject) -> None:
    file = bytearray(FINE[format])
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = admit(bytes(file[: data.draw(st.integers(1, len(file)))]))
    except Refusal:
        return
    assert pixels(image).shape == (image.height, image.width, 3)
