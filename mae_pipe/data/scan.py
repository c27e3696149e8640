"""A folder of images -> its splits: files in order, with keys and labels.

``SRC/CLASS/.../x.jpg`` has labels (the classes are the sorted folder names, as torchvision's
ImageFolder numbers them), ``SRC/x.jpg`` has none, and ``SRC/{train,val,test}/...`` has splits.
Links are followed, as folders of links to ImageNet are common; one that leads back above itself is refused.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mae_pipe.data.listing import Listing, key_of, printable
from mae_pipe.data.manifest import Refused
from mae_pipe.errors import DataError

SPLITS = ("train", "val", "valid", "validation", "test")
READ = (
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


@dataclass
class Source:
    """A scanned folder: its splits, and its classes by label (empty where nothing has a label)."""

    classes: list[str]
    splits: list[Listing]


def scan(source: Path, splits: Sequence[str] = (), *, arrays: bool = False, classes: bool = True) -> Source:
    """List a source folder.

    Args:
        arrays: whether .npy files are images too.
        classes: whether folders are classes; else images anywhere below have no label.
        splits: ``"NAME"`` takes the whole folder as that split; ``"NAME=SHARE"`` holds out that
            share of the images, by a hash of their keys. Default: the folder's own split folders, else "train".
    """
    whole, shares = _asked(splits)
    if not source.is_dir():
        raise DataError(f"{source} is not a folder; give the folder that holds the images")
    try:
        return _scanned(source, whole, shares, READ + ARRAYS if arrays else READ, classes)
    except OSError as error:
        raise DataError(
            f"{error.filename or source} cannot be listed: {error.strerror}; change its permissions, or leave it out"
        ) from error


def _scanned(
    source: Path, whole: str | None, shares: dict[str, float], endings: tuple[str, ...], by_folder: bool
) -> Source:
    folders = [] if whole else _split_folders(source)
    if folders and shares:
        raise DataError(
            f"{source} already has the split folders {', '.join(folders)}; leave out --split, "
            f"or give --split NAME to take the whole folder as one split"
        )
    roots = [(name, source / name, f"{name}/") for name in folders] or [(whole or "train", source, "")]
    classes = sorted({name for _, folder, _ in roots for name in _classes(folder, endings)}) if by_folder else []
    listings = [_listing(name, folder, prefix, classes, endings) for name, folder, prefix in roots]
    if folders:
        _outside(source, folders, listings[0])
    if shares:
        listings = _held_out(listings[0], shares)
    if not any(len(listing) for listing in listings):
        raise DataError(f"{source} holds no image files (.jpg, .png, ...); give the folder that holds them")
    for listing in listings:
        listing.settle_keys()
    return Source([printable(name) for name in classes], listings)


def _asked(splits: Sequence[str]) -> tuple[str | None, dict[str, float]]:
    whole, shares = None, {}
    for text in splits:
        name, equals, share = text.partition("=")
        if not re.fullmatch(r"[A-Za-z0-9_]+", name):
            raise DataError(f"--split {text!r} is not understood; expected NAME or NAME=SHARE, such as val=0.1")
        if not equals:
            if whole or len(splits) > 1:
                raise DataError(f"--split {name!r} takes the whole folder, so it must be the only --split")
            whole = name
            continue
        try:
            shares[name] = float(share)
        except ValueError:
            shares[name] = -1.0
        if not 0 < shares[name] < 1 or name == "train":
            raise DataError(f"--split {text!r} is not understood; expected a share between 0 and 1, such as val=0.1")
    if sum(shares.values()) >= 1:
        raise DataError(f"--split holds out {sum(shares.values()):g} of all images; nothing would be left to train on")
    return whole, shares


def _split_folders(source: Path) -> list[str]:
    """The split folders of a source, in their order; none where its folders are classes."""
    names = [entry.name for entry in _entries(source) if _is_folder(entry) and not entry.name.startswith(".")]
    found = [name for name in SPLITS if name in names]
    if found and len(found) < len(names) and "train" in found:
        others = ", ".join(sorted(set(names) - set(found))[:3])
        raise DataError(
            f"{source} has {', '.join(found)} beside other folders ({others}), so it is not clear whether they are "
            f"splits or classes; move the others away, or give --split NAME to take all folders as classes"
        )
    return found if len(found) == len(names) else []


def _classes(folder: Path, endings: tuple[str, ...]) -> list[str]:
    return [
        entry.name
        for entry in _entries(folder)
        if _is_folder(entry) and not entry.name.startswith(".") and _holds_images(Path(entry.path), endings)
    ]


def _holds_images(folder: Path, endings: tuple[str, ...]) -> bool:
    return any(reason is None for _, reason in _files(folder, endings))


def _listing(split: str, folder: Path, prefix: str, classes: list[str], endings: tuple[str, ...]) -> Listing:
    numbers = {name: number for number, name in enumerate(classes)}
    own = {entry.name for entry in _entries(folder) if _is_folder(entry)} & set(numbers)
    listing = Listing(split, folder, prefix, labelled=bool(own))
    for path, reason in _files(folder, endings):
        label = numbers.get(path.partition("/")[0], -1) if "/" in path else -1
        if reason is not None:
            listing.refuse(path, reason)
        elif listing.labelled and label < 0:
            listing.refuse(path, "beside the class folders, so of no class")
        else:
            listing.add(path, label)
    return listing


def _outside(source: Path, folders: list[str], listing: Listing) -> None:
    """Refuse, by name, what lies beside the split folders."""
    for entry in _entries(source):
        if entry.name not in folders:
            reason = "a hidden folder" if _is_folder(entry) else "beside the split folders, so of no split"
            listing.refused.append(Refused(path=printable(entry.name), reason=reason))


def _held_out(listing: Listing, shares: dict[str, float]) -> list[Listing]:
    """Share a listing out: each key's hash decides, so that a new image moves no other."""
    parts = {name: Listing(name, listing.folder, listing.prefix, listing.labelled) for name in (listing.split, *shares)}
    parts[listing.split].refused = listing.refused
    ends = dict(zip(shares, itertools.accumulate(shares.values()), strict=True))
    for number in range(len(listing)):
        path = listing.paths[number]
        digest = hashlib.blake2b(key_of(path).encode(), digest_size=8, person=b"split").digest()
        place = int.from_bytes(digest, "little") / 2**64
        name = next((name for name, end in ends.items() if place < end), listing.split)
        parts[name].add(path, listing.labels[number])
    empty = [name for name, part in parts.items() if not len(part)]
    if empty and len(listing):
        raise DataError(f"none of the {len(listing)} images falls into {empty[0]!r}; give --split a larger share")
    return list(parts.values())


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, say
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _files(folder: Path, endings: tuple[str, ...]) -> Iterator[tuple[str, str | None]]:
    """(path relative to ``folder``, None or why it is not read) of everything below, sorted folder by folder."""
    stack = [(folder, "", frozenset({_identity(folder)}))]
    while stack:
        here, prefix, above = stack.pop()
        try:
            entries = _entries(here)
        except OSError as error:
            yield prefix.rstrip("/"), f"cannot be read: {error.strerror}"
            continue
        below = []
        for entry in entries:
            path = prefix + entry.name
            if entry.name.startswith("."):
                yield path, "a hidden folder" if _is_folder(entry) else "a hidden file"
            elif _is_folder(entry):
                identity = _identity(Path(entry.path))
                if identity in above:
                    yield path, "a link to a folder above itself"
                else:
                    below.append((Path(entry.path), f"{path}/", above | {identity}))
            elif not _is_file(entry):
                yield path, "a broken link" if entry.is_symlink() else "not a regular file"
            elif (ending := entry.name.rpartition(".")[2].lower()) in endings:
                yield path, None
            elif ending in ARRAYS:
                yield path, "an array, which is read with --channels"
            else:
                yield path, f"a .{ending} image, which is not read" if ending in NOT_READ else "not an image file"
        stack.extend(reversed(below))


def _identity(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino
