"""What names of files say: which are images, which are splits."""

from __future__ import annotations

IMAGES = (
    "jpg",
    "jpeg",
    "jpe",
    "jfif",
    "png",
    "apng",
    "webp",
    "gif",
    "bmp",
    "dib",
    "tif",
    "tiff",
    "ppm",
    "pgm",
    "pbm",
    "pnm",
)
ARRAYS = ("npy",)  # read where channels are asked for
NOT_READ = ("avif", "heic", "heif", "jp2", "jxl", "ico", "svg", "psd")  # images that no decoder here knows


def why_not(name: str, *, arrays: bool = False) -> str:
    """Why a file of that name is no image; "" where it may be one."""
    ending = name.rpartition(".")[2].lower()
    if ending in IMAGES or (arrays and ending in ARRAYS):
        return ""
    if ending in ARRAYS:
        return "an array, which is read with --channels"
    return f"a .{ending} image, which is not read" if ending in NOT_READ else "not an image file"


def split_of(name: str, splits: tuple[str, ...]) -> str:
    """The split that a file's name begins with, such as "imagenet-val-0003.tar"; "train" where it names none."""
    words = name.lower().replace("_", "-").replace(".", "-").split("-")
    return next((split for split in splits if split in words), "train")
