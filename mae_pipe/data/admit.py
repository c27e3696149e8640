"""The bytes of an image file -> a checked image ready to be stored, or why not.

What every decoder reads alike (8-bit JPEG, PNG, WebP of the wanted channels, upright, within the
wanted size) is kept byte for byte. The rest is converted, each way counted by name. Nothing else
passes: a picture is decoded whole here, once, so that training never meets a bad one.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from mae_pipe.data import arrays, fidelity, jpeg, plain, planar
from mae_pipe.data.glance import glance, orientation
from mae_pipe.data.refusal import Refusal
from mae_pipe.data.sample import Encoding, Pixels
from mae_pipe.errors import MaePipeError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # no other decoder is ever tried
PIXELS = arrays.PIXELS
BYTES = 512 << 20  # a file that is larger is not read
QUALITY = 95  # of JPEGs that have to be made anew; 4:4:4
UPRIGHT = {  # what makes an image of each EXIF orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Wishes:
    """What the user wants of stored images.

    Attributes:
        quality: of JPEGs made anew. When given, lossless pictures become JPEGs too.
        max_side: the longer side is shrunk to this many pixels.
        short_side: the shorter side is shrunk to this many pixels.
        limit: a larger side is refused, as the shard format cannot hold it.
        channels: files of another number are refused; 3 takes grey ones too.
        values: what become 0 and 255, of numbers that are not 8 bits.
        planes: store every image without compression, as planes of YCbCr 4:2:0.
        raw: store every image without compression, as RGB.
        pixels: keep ``Pixels`` as they are, as raw pixels; else they become PNG files.
        compare: say how far what is stored lies from the original.
        glance: look at headers only, and refuse what would have to be converted; there are no sums then.
    """

    quality: int | None = None
    max_side: int | None = None
    short_side: int | None = None
    limit: int | None = None
    channels: int = 3
    values: arrays.Range | None = None
    planes: bool = False
    raw: bool = False
    pixels: bool = False
    compare: bool = False
    glance: bool = False


class Sums(NamedTuple):
    """Exact sums over an image's pixels, per channel."""

    pixels: int
    values: tuple[int, ...]
    squares: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Admitted:
    """A checked image.

    Attributes:
        converted: what was done to it, () where its bytes are the file's.
        whole: its (width, height) before it was shrunk.
        error: from the original (``fidelity.error``), where that was asked for and the bytes are other ones.
    """

    image: bytes
    encoding: Encoding
    width: int
    height: int
    converted: tuple[str, ...]
    sums: Sums
    whole: tuple[int, int]
    error: float | None = None


Picture = Image.Image | arrays.Pixels  # an array where no mode of Pillow's has as many channels


def admit(data: bytes, wishes: Wishes = Wishes()) -> Admitted:
    """Check one image file; raises ``Refusal``. No warning of any decoder leaks."""
    if not data:
        raise Refusal("zero bytes")
    if len(data) > BYTES:
        raise Refusal(f"{len(data):,} bytes, more than {BYTES:,}")
    with warnings.catch_warnings(action="ignore"):
        try:
            return _admit(data, wishes)
        except (Refusal, MaePipeError):
            raise
        except UnidentifiedImageError:
            raise Refusal("not an image, or its header is damaged") from None
        except Image.DecompressionBombError:
            raise Refusal(f"claims more than {PIXELS // 10**6} megapixels") from None
        except Exception as error:  # decoders of damaged files raise whatever they like
            text = str(error).split("\n")[0] or type(error).__name__
            raise Refusal(("truncated: " if "truncated" in text else "damaged: ") + text) from None


def _admit(data: bytes, wishes: Wishes) -> Admitted:
    if wishes.glance and not isinstance(data, Pixels):
        encoding, width, height = glance(data, wishes.channels)
        nothing = (0,) * wishes.channels
        return Admitted(data, encoding, width, height, (), Sums(0, nothing, nothing), (width, height))
    converted: list[str] = []
    data, kind, picture = _read(data, wishes, converted)
    whole, original = _size(picture), picture
    picture = _shrunk(picture, wishes, converted)
    width, height = _size(picture)
    if wishes.limit and max(width, height) > wishes.limit:
        raise Refusal(f"{width} x {height} pixels, more than the {wishes.limit} that the format holds")
    lossy = kind == "JPEG" or (kind == "WEBP" and not _is_lossless_webp(data))
    if wishes.quality is not None and not lossy:
        converted.append("to jpeg")
    if wishes.planes:
        assert isinstance(picture, Image.Image)  # of three channels
        made = planar.stored(picture)
        converted.append("to planes")
        picture = planar.picture(made, width, height)
        stored, encoding = made, "yuv420"
    elif wishes.raw:
        assert isinstance(picture, Image.Image)
        converted.append("to raw pixels")
        picture = picture.convert("RGB")
        stored, encoding = picture.tobytes(), "raw"
    elif kind == "RAW" and wishes.pixels and not converted:
        stored, encoding = data, "raw"
    else:
        converted += ["raw pixels"] * (kind == "RAW")
        stored, encoding, picture = _stored(data, kind, picture, converted, wishes.quality, lossy)
    far = fidelity.error(original, picture) if wishes.compare and stored is not data else None
    return Admitted(stored, encoding, width, height, tuple(converted), sums(picture, wishes.channels), whole, far)


def _read(data: bytes, wishes: Wishes, converted: list[str]) -> tuple[bytes, str, Picture]:
    """The bytes, mended where need be, their kind, and their picture, upright."""
    if isinstance(data, Pixels):
        return data, "RAW", plain.of_channels(_unpacked(data), wishes.channels, converted)
    if data.startswith(arrays.MAGIC):
        read, kind = arrays.of_npy, "NPY"
    elif data[:4] in arrays.TIFF_MAGICS and (wishes.channels not in (1, 3) or wishes.values):
        read, kind = arrays.of_tiff, "TIFF"
    else:
        return _decoded(data, wishes, converted)
    converted.append(kind.lower())
    return data, kind, _pictured(read(data, wishes.channels, wishes.values, converted))


def _unpacked(data: Pixels) -> Image.Image:
    if data.width * data.height > PIXELS or len(data) != 3 * data.width * data.height:
        raise Refusal(f"raw pixels of {data.width} x {data.height} in {len(data):,} bytes")
    return Image.frombytes("RGB", (data.width, data.height), data)


def _decoded(data: bytes, wishes: Wishes, converted: list[str]) -> tuple[bytes, str, Image.Image]:
    """``_read`` of an image file."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    if width * height > PIXELS:
        raise Refusal(f"claims {width} x {height} pixels, more than {PIXELS // 10**6} megapixels")
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    turned = orientation(image)
    if kind == "JPEG":
        data, picture = jpeg.checked(data, image, converted)
        if picture.mode == "CMYK" and wishes.channels in (1, 3):
            converted.append("cmyk")
            picture = picture.convert("RGB")
        picture = plain.of_channels(picture, wishes.channels, converted)
    else:
        picture = plain.picture(data, image, kind, wishes.channels, wishes.values, converted)
    if turned != 1:
        converted.append("rotated")
        if kind != "TIFF":  # Pillow turns a TIFF while it loads it
            picture = picture.transpose(UPRIGHT[turned])
    return data, kind, picture


def _stored(
    data: bytes, kind: str, picture: Picture, converted: list[str], quality: int | None, lossy: bool
) -> tuple[bytes, Encoding, Picture]:
    """What is stored, and the picture that it decodes to."""
    if isinstance(picture, np.ndarray):
        return arrays.stored(picture), "npy", picture
    if converted in ([], ["end marker added"], ["padding removed"]) and kind in _ENCODINGS:
        return data, _ENCODINGS[kind], picture
    if (lossy or quality is not None) and picture.mode != "RGBA":
        made, picture = _as_jpeg(picture, quality or QUALITY)
        return made, "jpeg", picture
    return _as_png(picture), "png", picture


_ENCODINGS: dict[str, Encoding] = {"JPEG": "jpeg", "PNG": "png", "WEBP": "webp"}


def sums(picture: Picture, channels: int) -> Sums:
    """Of the pixels that are stored; grey stands for all of 3 channels."""
    width, height = _size(picture)
    if isinstance(picture, np.ndarray):
        bands = (picture[..., band].ravel() for band in range(picture.shape[2]))
        counts = np.stack([np.bincount(band, minlength=256) for band in bands])  # [C, 256]
    else:
        counts = np.array(picture.histogram(), np.int64).reshape(-1, 256)  # [C or 1, 256]
    levels = np.arange(256)
    values, squares = (counts * levels).sum(1).tolist(), (counts * levels**2).sum(1).tolist()
    if len(values) == 1:
        values, squares = values * channels, squares * channels
    return Sums(width * height, tuple(values), tuple(squares))


def _pictured(pixels: arrays.Pixels) -> Picture:
    """Pillow's, where PNG holds as many channels."""
    if pixels.shape[2] == 1:
        return Image.fromarray(np.ascontiguousarray(pixels[..., 0]))
    return Image.fromarray(np.ascontiguousarray(pixels)) if pixels.shape[2] in (3, 4) else pixels


def _size(picture: Picture) -> tuple[int, int]:
    """Width and height."""
    return picture.size if isinstance(picture, Image.Image) else (picture.shape[1], picture.shape[0])


def _shrunk(picture: Picture, wishes: Wishes, converted: list[str]) -> Picture:
    width, height = _size(picture)
    factor = min(
        1.0,
        (wishes.max_side or max(width, height)) / max(width, height),
        (wishes.short_side or min(width, height)) / min(width, height),
    )
    size = max(1, round(width * factor)), max(1, round(height * factor))
    if size == (width, height):
        return picture
    converted.append("resized")
    if isinstance(picture, Image.Image) and picture.mode != "RGBA":
        return picture.resize(size, Image.Resampling.BICUBIC)  # antialiased, the filter of the training crops
    # Band by band: Pillow would take a fourth channel for opacity.
    bands = np.asarray(picture)
    images = (Image.fromarray(np.ascontiguousarray(bands[..., band])) for band in range(bands.shape[2]))
    return _pictured(np.stack([np.asarray(image.resize(size, Image.Resampling.BICUBIC)) for image in images], axis=2))


def _is_lossless_webp(data: bytes) -> bool:
    """Whether the first picture of a WebP file is stored without loss."""
    at = 12  # after RIFF, size, WEBP
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name in (b"VP8 ", b"VP8L"):
            return name == b"VP8L"
        at += 8 + (16 if name == b"ANMF" else size + size % 2)  # a frame holds chunks of its own after 16 bytes
    return False


def _as_jpeg(picture: Image.Image, quality: int) -> tuple[bytes, Image.Image]:
    """A JPEG, and the picture that it decodes to: statistics are of what is stored."""
    out = io.BytesIO()
    _bare(picture).save(out, "JPEG", quality=quality, subsampling=0, optimize=True)
    data = out.getvalue()
    return data, Image.open(io.BytesIO(data), formats=("JPEG",))


def _as_png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    _bare(picture).save(out, "PNG")
    return out.getvalue()


def _bare(picture: Image.Image) -> Image.Image:
    """Without ICC, text and other blocks of the source."""
    bare = picture.copy()
    bare.info = {}
    return bare
