"""The bytes of an image file -> a checked image ready to be stored, or why not.

What every decoder reads alike (8-bit RGB or grey JPEG, PNG, WebP, upright, within the wanted
size) is kept byte for byte. The rest is converted, each way counted by name. Nothing else passes:
a picture is decoded whole here, once, so that training never meets a bad one.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from mae_pipe.data import jpeg
from mae_pipe.data.refusal import Refusal
from mae_pipe.data.sample import Encoding

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # no other decoder is ever tried
PIXELS = 64_000_000  # an image that claims more is refused before it is decoded
BYTES = 512 << 20  # a file that is larger is not read
QUALITY = 95  # of JPEGs that have to be made anew; 4:4:4
ORIENTATION = 0x0112  # EXIF
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
    """

    quality: int | None = None
    max_side: int | None = None
    short_side: int | None = None
    limit: int | None = None


class Sums(NamedTuple):
    """Exact sums over an image's pixels, per channel (red, green, blue)."""

    pixels: int
    values: tuple[int, int, int]
    squares: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Admitted:
    """A checked image; ``converted`` names what was done to it, () where its bytes are the file's."""

    image: bytes
    encoding: Encoding
    width: int
    height: int
    converted: tuple[str, ...]
    sums: Sums


def admit(data: bytes, wishes: Wishes = Wishes()) -> Admitted:
    """Check one image file; raises ``Refusal``. No warning of any decoder leaks."""
    if not data:
        raise Refusal("zero bytes")
    if len(data) > BYTES:
        raise Refusal(f"{len(data):,} bytes, more than {BYTES:,}")
    with warnings.catch_warnings(action="ignore"):
        try:
            return _admit(data, wishes)
        except Refusal:
            raise
        except UnidentifiedImageError:
            raise Refusal("not an image, or its header is damaged") from None
        except Image.DecompressionBombError:
            raise Refusal(f"claims more than {PIXELS // 10**6} megapixels") from None
        except Exception as error:  # decoders of damaged files raise whatever they like
            text = str(error).split("\n")[0] or type(error).__name__
            raise Refusal(("truncated: " if "truncated" in text else "damaged: ") + text) from None


def _admit(data: bytes, wishes: Wishes) -> Admitted:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    if width * height > PIXELS:
        raise Refusal(f"claims {width} x {height} pixels, more than {PIXELS // 10**6} megapixels")
    converted: list[str] = []
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    turned = _orientation(image)
    if kind == "JPEG":
        data, picture = jpeg.checked(data, image, converted)
    else:
        picture = _other(data, image, kind, converted)
    if turned != 1:
        converted.append("rotated")
        if kind != "TIFF":  # Pillow turns a TIFF while it loads it
            picture = picture.transpose(UPRIGHT[turned])
    picture = _shrunk(picture, wishes, converted)
    if wishes.limit and max(picture.size) > wishes.limit:
        raise Refusal(f"{picture.width} x {picture.height} pixels, more than the {wishes.limit} that the format holds")
    lossy = kind == "JPEG" or (kind == "WEBP" and not _is_lossless_webp(data))
    if wishes.quality is not None and not lossy:
        converted.append("to jpeg")
    encoding: Encoding
    if converted in ([], ["end marker added"], ["padding removed"]) and kind in ("JPEG", "PNG", "WEBP"):
        stored, encoding = data, _ENCODINGS[kind]
    elif lossy or wishes.quality is not None:
        stored, picture = _as_jpeg(picture, wishes.quality or QUALITY)
        encoding = "jpeg"
    else:
        stored, encoding = _as_png(picture), "png"
    return Admitted(stored, encoding, picture.width, picture.height, tuple(converted), sums(picture))


_ENCODINGS: dict[str, Encoding] = {"JPEG": "jpeg", "PNG": "png", "WEBP": "webp"}


def sums(picture: Image.Image) -> Sums:
    """Of an RGB or grey picture."""
    counts = np.array(picture.histogram(), np.int64).reshape(-1, 256)  # [3 or 1, 256]
    levels = np.arange(256)
    values, squares = (counts * levels).sum(1).tolist(), (counts * levels**2).sum(1).tolist()
    if len(values) == 1:
        values, squares = values * 3, squares * 3
    return Sums(picture.width * picture.height, tuple(values), tuple(squares))


def _other(data: bytes, image: Image.Image, kind: str, converted: list[str]) -> Image.Image:
    """The picture of anything but a JPEG, RGB or grey, 8 bits."""
    if kind == "PNG":
        Image.open(io.BytesIO(data), formats=("PNG",)).verify()  # checksums, which decoding alone does not look at
    if kind not in _ENCODINGS:
        converted.append(kind.lower())
    if getattr(image, "n_frames", 1) > 1:
        converted.append("first page" if kind == "TIFF" else "first frame")
    deep = kind == "PNG" and data[24] == 16
    if deep or image.mode.startswith("I;16") or (kind == "PPM" and image.mode == "I"):
        converted.append("16-bit")
    if deep and image.mode in ("RGB", "RGBA"):
        picture = _exact_16_bit(data, image.mode)
    else:
        image.load()
        picture = image
    if picture.mode.startswith("I;16") or (kind == "PPM" and picture.mode == "I"):
        values = np.asarray(picture).astype(np.uint32)
        picture = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    return _plain(picture, converted)


def _plain(picture: Image.Image, converted: list[str]) -> Image.Image:
    """RGB or grey, without alpha (on white), palette or other colour spaces."""
    mode = picture.mode
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        converted.append("alpha")
        grey = mode in ("L", "LA", "La", "1")
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        white.alpha_composite(layer)
        return white.convert("L" if grey else "RGB")
    if mode in ("RGB", "L"):
        return picture
    if mode == "1":
        converted.append("bilevel")
        return picture.convert("L")
    names = {"P": "palette", "CMYK": "cmyk", "YCbCr": "ycbcr", "RGBX": "rgbx"}
    if mode not in names:
        raise Refusal(f"pixels of the kind {mode!r}, which have no agreed range; convert the file to 8 or 16 bits")
    converted.append(names[mode])
    return picture.convert("RGB")


def _exact_16_bit(data: bytes, mode: str) -> Image.Image:
    """A 16-bit colour PNG, rounded to 8 bits; Pillow alone would cut the lower byte off.

    Read as big-endian it gives the upper bytes, read as little-endian the lower ones.
    """
    halves = []
    for order in ("B", "L"):
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        image.tile = [tile._replace(args=f"{mode};16{order}") for tile in image.tile]
        halves.append(np.asarray(image).astype(np.uint32))
    return Image.fromarray(((halves[0] * 256 + halves[1] + 128) // 257).astype(np.uint8), mode)


def _orientation(image: Image.Image) -> int:
    """How the camera was held, 1 to 8; 1 where that is not said, or not readable."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged EXIF block does not make the picture worse
        return 1
    return value if value in range(2, 9) else 1


def _shrunk(picture: Image.Image, wishes: Wishes, converted: list[str]) -> Image.Image:
    width, height = picture.size
    factor = min(
        1.0,
        (wishes.max_side or max(width, height)) / max(width, height),
        (wishes.short_side or min(width, height)) / min(width, height),
    )
    size = max(1, round(width * factor)), max(1, round(height * factor))
    if size == (width, height):
        return picture
    converted.append("resized")
    return picture.resize(size, Image.Resampling.BICUBIC)  # antialiased, the filter of the training crops


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
