"""What a source lists -> its splits: images in order, with keys and labels."""

from __future__ import annotations

import hashlib
import itertools
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mae_pipe.data.labels import Lists
from mae_pipe.data.listing import Listing, key_of, printable
from mae_pipe.data.manifest import Refused
from mae_pipe.data.refusal import Refusal
from mae_pipe.data.sources import Asked, ImageSource, Item
from mae_pipe.errors import DataError, MaePipeError, PluginError

UNNAMED = "no label"


@dataclass
class Source:
    """What a reader listed: splits, and classes by label (empty where nothing has a label)."""

    reader: ImageSource
    classes: list[str]
    splits: list[Listing]
    lists: list[Lists] | None = None  # of each split, where images have lists of classes


def scan(
    source: ImageSource,
    splits: Sequence[str] = (),
    *,
    arrays: bool = False,
    classes: bool = True,
    names: Sequence[str] | None = None,
) -> Source:
    """List a source.

    Args:
        arrays: whether .npy files are images too.
        classes: whether the source's own labels are wanted.
        splits: ``"NAME"`` takes all of it as that split; ``"NAME=SHARE"`` holds out that
            share of the images, by a hash of their keys. Default: the source's own splits, else "train".
        names: of the classes, where labels are numbers.
    """
    whole, shares = _asked(splits)
    found = _Gathered(source, whole)
    try:
        for item in source.items(Asked(arrays=arrays, labels=classes, whole=whole is not None)):
            found.add(item)
    except OSError as error:
        raise DataError(
            f"{error.filename or source.path} cannot be listed: {error.strerror}; "
            f"change its permissions, or leave it out"
        ) from error
    except (MaePipeError, KeyboardInterrupt):
        raise
    except Refusal as refusal:
        raise DataError(f"{source.path} cannot be listed: {refusal}") from None
    except Exception as error:  # whatever a stranger's source does
        plugin = getattr(type(source), "__plugin__", type(source).__name__)
        raise PluginError(f"the source plugin {plugin!r} failed: {type(error).__name__}: {error}") from error
    listings = found.listings()
    if shares and (len(listings) > 1 or any(listing.prefix for listing in listings)):
        raise DataError(
            f"{source.path} already has the splits {', '.join(found.splits)}; leave out --split, "
            f"or give --split NAME to take all of it as one split"
        )
    named = found.named(names)
    if shares and listings:
        listings = _held_out(listings[0], shares)
    if not any(len(listing) for listing in listings):
        raise DataError(f"{source.path} holds no image files (.jpg, .png, ...); give the folder that holds them")
    for listing in listings:
        listing.settle_keys()
    return Source(source, [printable(name) for name in named], listings, found.lists(listings))


@dataclass
class _Gathered:
    """Items, put in their splits as they come."""

    source: ImageSource
    whole: str | None
    splits: dict[str, Listing] = field(default_factory=dict)
    _classes: dict[str | int, int] = field(default_factory=dict)  # label -> a number, in order of appearance
    _several: dict[str, tuple[int, ...]] = field(default_factory=dict)  # the same of images with lists, by place

    def add(self, item: Item) -> None:
        listing = self.splits.get(name := self.whole or item.split)
        if listing is None:
            if not re.fullmatch(r"[A-Za-z0-9_]+", name):
                raise DataError(f"{self.source.path} has a split {name!r}; expected letters, digits and _ in its name")
            listing = self.splits[name] = Listing(name, item.prefix, labelled=False)
        if item.refused:
            listing.refused.append(Refused(path=printable(item.prefix + item.path), reason=printable(item.refused)))
            return
        if item.prefix != listing.prefix and not self.whole and not len(listing):
            listing.prefix = item.prefix
        number = -1
        if isinstance(item.label, int) and item.label < 0:
            raise DataError(f"{self.source.path}: {item.path} has the label {item.label}; expected 0 or above")
        if isinstance(item.label, tuple):
            numbers = (self._classes.setdefault(label, len(self._classes)) for label in item.label)
            self._several[item.place or item.prefix + item.path] = tuple(numbers)
        elif item.label is not None:
            number = self._classes.setdefault(item.label, len(self._classes))
            listing.labelled = True
        path = item.path if item.prefix == listing.prefix else item.prefix + item.path
        listing.add(path, number, item.place)

    def listings(self) -> list[Listing]:
        """The splits, without what has no label where others have."""
        self.splits = {name: listing.without_unlabelled(UNNAMED) for name, listing in self.splits.items()}
        return list(self.splits.values())

    def named(self, names: Sequence[str] | None) -> list[str]:
        """The names of the classes by number; labels become those numbers."""
        if self._several and any(listing.labelled for listing in self.splits.values()):
            raise DataError(f"{self.source.path} has images with one class and images with lists of them; keep one")
        if not self._classes:
            return []
        numbers = [label for label in self._classes if isinstance(label, int)]
        known = self.source.classes
        if len(numbers) < len(self._classes):  # "1" beside "cat", or beside "01", is a name
            numbers = []
        if numbers:
            top = max(numbers)
            if known is None:
                known = names if names is not None else [str(number) for number in range(top + 1)]
            if top >= len(known):
                raise DataError(f"{self.source.path} has the label {top}, but there are {len(known)} class names")
            rank: dict[str | int, int] = {number: number for number in numbers}
        else:
            if known is None and names is not None:
                known = names
            if known is None:
                known = sorted(str(label) for label in self._classes)
            rank = {name: number for number, name in enumerate(known)}
            strange = next((label for label in self._classes if str(label) not in rank), None)
            if strange is not None:
                raise DataError(f"{self.source.path} has the label {strange!r}, which is not among its class names")
        # The last is the number of those that have none, -1.
        table = np.array([rank[label if numbers else str(label)] for label in self._classes] + [-1], np.int32)
        self._several = {place: tuple(table[list(few)].tolist()) for place, few in self._several.items()}
        for listing in self.splits.values():
            listing.labels = array("i", table[np.array(listing.labels, np.int32)].tobytes())
        return list(known)

    def lists(self, listings: list[Listing]) -> list[Lists] | None:
        """The lists of classes of each split; None where images have one class, or none."""
        if not self._several:
            return None
        return [Lists.of_all(self._several.get(split.place(n)) for n in range(len(split))) for split in listings]


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


def _held_out(listing: Listing, shares: dict[str, float]) -> list[Listing]:
    """Share a listing out: each key's hash decides, so that a new image moves no other."""
    parts = {name: Listing(name, listing.prefix, listing.labelled) for name in (listing.split, *shares)}
    parts[listing.split].refused = listing.refused
    ends = dict(zip(shares, itertools.accumulate(shares.values()), strict=True))
    for number in range(len(listing)):
        path = listing.paths[number]
        digest = hashlib.blake2b(key_of(path).encode(), digest_size=8, person=b"split").digest()
        place = int.from_bytes(digest, "little") / 2**64
        name = next((name for name, end in ends.items() if place < end), listing.split)
        parts[name].add(path, listing.labels[number], listing.places[number] if listing.places else "")
    empty = [name for name, part in parts.items() if not len(part)]
    if empty and len(listing):
        raise DataError(f"none of the {len(listing)} images falls into {empty[0]!r}; give --split a larger share")
    return list(parts.values())
