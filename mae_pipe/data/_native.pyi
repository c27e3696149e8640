"""Decodes, crops and resizes images in C; built from ``native/``. Other threads run meanwhile."""

from typing_extensions import Buffer

Box = tuple[int, int, int, int]
Pair = tuple[int, int]

def view_jpeg(
    data: Buffer,
    marks: Buffer | None,
    out: Buffer,
    cuts: tuple[tuple[Box, Pair, Pair, bool], ...],
    filter: int,
    tall_first: bool,
    /,
) -> bool:
    """Fill ``out``, [views, 1 or 3, H, W], of one decode; False for a kind of JPEG that is left to others.

    A cut is a box of the image, the (width, height) that it is resized to, the (left, top) in that where the view
    begins, and whether it is mirrored.

    Raises:
        ValueError: the file is damaged.
    """

def view_pixels(
    pixels: Buffer,
    width: int,
    height: int,
    channels: int,
    out: Buffer,
    box: Box,
    resized: Pair,
    origin: Pair,
    mirrored: bool,
    filter: int,
    tall_first: bool,
    /,
) -> bool:
    """Fill ``out`` from [height, width, channels] pixels."""

def view_planar(
    planes: Buffer,
    width: int,
    height: int,
    out: Buffer,
    box: Box,
    resized: Pair,
    origin: Pair,
    mirrored: bool,
    filter: int,
    tall_first: bool,
    /,
) -> bool:
    """Fill ``out`` from planes of YCbCr 4:2:0."""

def marks(data: Buffer, /) -> bytes | None:
    """Where each row of a JPEG's blocks begins, 11 bytes a row; None for a kind that is left to others.

    Raises:
        ValueError: the file is damaged.
    """

def crc32(data: Buffer, /) -> int:
    """As ``zlib.crc32``, with the processor's own multiplication."""

def vectors(most: int, /) -> int:
    """Use at most 0 no, 1 AVX2 or 2 AVX-512 code from now on; returns what is used."""
