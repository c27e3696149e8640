"""Images that are arrays of numbers: NumPy's .npy and TIFFs of any number of bands -> [H, W, C], 8 bits.

An array's header is read by NumPy's own parser and its numbers are taken as they lie there; nothing in it is run.
"""

from __future__ import annotations

import io
import logging
import math
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from mae_pipe.data.refusal import Refusal
from mae_pipe.errors import DataError
from mae_pipe.wording import counted

MAGIC = npy.MAGIC_PREFIX
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
PIXELS = 64_000_000  # an image that claims more is refused before it is decoded
DECODED = 2 << 30  # bytes of numbers; more are not held in memory
Pixels = NDArray[np.uint8]
Range = tuple[float, float]  # the values that become 0 and 255


def of_npy(data: bytes, channels: int, values: Range | None, converted: list[str]) -> Pixels:
    """[H, W, C] of an .npy file's [H, W], [H, W, C] or [C, H, W]; raises ``Refusal``."""
    array = _parsed(data)
    return _eight_bits(_bands_last(array, channels), values, converted)


def of_tiff(data: bytes, channels: int, values: Range | None, converted: list[str]) -> Pixels:
    """[H, W, C] of a TIFF's first image, whose bands may be interleaved, planes or pages; raises ``Refusal``."""
    try:
        import tifffile
    except ImportError:
        raise _needs_extra("tifffile", channels) from None
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # what it has to say comes as an error too
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        series = file.series[0]
        shape = [side for side in series.shape if side != 1]
        if len(shape) not in (2, 3) or math.prod(shape) > PIXELS * channels:
            raise Refusal(
                f"wrong channels: a TIFF of {_by(series.shape)}, not one image of {counted(channels, 'channel')}"
            )
        if (size := math.prod(shape) * series.dtype.itemsize) > DECODED:
            raise Refusal(f"{size / 10**9:.1f} GB of numbers, where {DECODED / 10**9:.1f} GB are allowed")
        try:
            array = series.asarray().reshape(shape)
        except ValueError as error:
            if "imagecodecs" in str(error):
                raise _needs_extra("imagecodecs", channels) from None
            raise
    return _eight_bits(_bands_last(array, channels), values, converted)


def _needs_extra(package: str, channels: int) -> DataError:
    return DataError(
        f"TIFF files of {counted(channels, 'channel')} need {package}; install it with: pip install 'mae-pipe[tiff]'"
    )


def stored(pixels: Pixels) -> bytes:
    """An .npy file of [H, W, C]; the same pixels give the same bytes."""
    out = io.BytesIO()
    npy.write_array(out, np.ascontiguousarray(pixels), version=(1, 0), allow_pickle=False)
    return out.getvalue()


def parsed(data: bytes | memoryview) -> Pixels:
    """[H, W, C] of bytes that ``stored`` made."""
    return _parsed(data)


def _parsed(data: bytes | memoryview) -> NDArray[Any]:
    """The array of an .npy file; Python objects, which NumPy would unpickle, are refused."""
    file = io.BytesIO(data)
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise Refusal(f"an array file of version {version[0]}.{version[1]}, not 1.0 or 2.0")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject or dtype.kind not in "uif":
        raise Refusal(f"an array of {dtype}, not of numbers")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise Refusal(f"truncated: an array of {_by(shape)} {dtype} has another number of bytes")
    flat = np.frombuffer(data, dtype, offset=file.tell())
    return flat.reshape(shape, order="F" if fortran else "C")


def _bands_last(array: NDArray[Any], channels: int) -> NDArray[Any]:
    """[H, W, C]; where both the first and the last side could be the channels, the last one is."""
    shape = array.shape
    if array.ndim == 2 and channels == 1:
        array = array[..., None]
    elif array.ndim == 3 and shape[2] != channels and shape[0] == channels:
        array = array.transpose(1, 2, 0)
    elif array.ndim != 3 or shape[2] != channels:
        raise Refusal(f"wrong channels: an array of {_by(shape)}, not of {counted(channels, 'channel')}")
    if 0 in array.shape:
        raise Refusal(f"an array of {_by(shape)}, without pixels")
    if array.shape[0] * array.shape[1] > PIXELS:
        raise Refusal(f"{array.shape[1]} x {array.shape[0]} pixels, more than {PIXELS // 10**6} megapixels")
    return array


def _eight_bits(array: NDArray[Any], values: Range | None, converted: list[str]) -> Pixels:
    """8-bit numbers as they are; others from ``values``, or 16-bit ones without a sign from all that they can be."""
    if array.dtype == np.uint8:
        return array
    if values is None and array.dtype == np.dtype("uint16").newbyteorder(array.dtype.byteorder):
        converted.append("16-bit")
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if values is None:
        raise Refusal(f"{array.dtype.name} values, whose range is not known; give --value-range LOW HIGH")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Refusal(f"{array.dtype.name} values that are not finite")
    converted.append(array.dtype.name)
    return scaled(array, values)


def scaled(array: NDArray[Any], values: Range) -> Pixels:
    """``values`` -> 0 and 255, linearly and rounded; what lies outside becomes 0 or 255."""
    low, high = values
    out = np.empty(array.shape, np.uint8)
    for row in range(len(array)):  # row by row: a whole image in float64 would be eight times its size
        out[row] = np.rint(np.clip((array[row].astype(np.float64) - low) * 255.0 / (high - low), 0.0, 255.0))
    return out


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "nothing"
