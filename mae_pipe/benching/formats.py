"""The formats that given shards could have instead: options of ``mae-pipe shard``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mae_pipe.benching.taken import Taken
from mae_pipe.catalog import Catalog
from mae_pipe.data import region
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.sample import ShardFormat
from mae_pipe.errors import MaePipeError

USUAL = "webdataset"  # the format of a build that names none
QUALITY = 95  # of JPEGs that images without loss become
ROOM = 1.15  # the short side of stored images, in sides of a crop
STEP = 8  # pixels; stored sides are multiples

CARRIED = ("max_side", "short_side", "channels")  # options of the given shards that a build from the originals repeats


@dataclass(frozen=True)
class Format:
    """A way to store images.

    Attributes:
        options: of ``sharding.build``, for images as they were taken from the given shards.
        words: the options of ``mae-pipe shard`` that make the same from the originals.
    """

    options: Mapping[str, Any]
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """For people."""
        return " ".join(self.words) or f"--format {USUAL}"

    @property
    def command(self) -> str:
        """What builds it."""
        return " ".join(["mae-pipe shard IMAGES OUT", *self.words])


def short_side(sides: tuple[int, int]) -> int:
    """The smallest sensible short side of stored images, for crops of ``sides``: 256 for 224."""
    return max(round(ROOM * max(sides) / STEP), 1) * STEP


def formats(
    manifest: Manifest, split: str, taken: Taken, side: int, catalog: Catalog
) -> tuple[list[Format], list[str]]:
    """The formats worth a trial beside that of the given shards, and in a sentence each what was left out.

    Args:
        taken: images of the split.
        side: the short side that images would be shrunk to.
    """
    before = manifest.options.get(split, {})
    pixels = bool(before.get("planes") or before.get("raw"))
    stored = _kind(manifest.format, {**before, "marks": manifest.split(split).marks is not None}, taken)
    found: list[Format] = []
    said: list[str] = []
    for name in catalog.names("shards"):
        try:
            writer: ShardFormat = catalog.build("shards", name, {})
            writer.ready()
        except MaePipeError as error:
            said.append(f"--format {name} was left out: {error}")
            continue
        if writer.origins:  # lists of the user's files, not files of their own
            continue
        for options in _ways(name, writer, taken, side, manifest.channels):
            if pixels and not (options.get("planes") or options.get("raw")):
                continue
            if options.get("short_side") or options.get("quality") or _kind(name, options, taken) != stored:
                found.append(_format(name, options, before, manifest.channels))
    if pixels:
        said.append("these shards hold pixels, so formats of image files can only be tried on shards of the originals")
    if manifest.channels != 3:
        said.append(f"--planes and --raw are for 3 channels, these images have {manifest.channels}")
    if taken.maps:
        said.append("maps of classes count with the bytes that they have here, and are not read")
    return found, said


def _ways(name: str, writer: ShardFormat, taken: Taken, side: int, channels: int) -> Iterator[dict[str, Any]]:
    """Options of builds in a format."""
    smaller = {"short_side": side} if taken.shortest > side else None
    yield {}
    if name == USUAL:
        if taken.jpegs and region.can_mark():
            yield {"marks": False}
        if smaller:
            yield smaller
        if taken.lossless and channels in (1, 3):
            yield {"quality": QUALITY}
            if smaller:
                yield {"quality": QUALITY, **smaller}
    if writer.planes and channels == 3:
        yield {"planes": True}
        if smaller:
            yield {**smaller, "planes": True}
    if writer.raw and channels == 3:
        yield {"raw": 1.0}


def _kind(name: str, options: Mapping[str, Any], taken: Taken) -> tuple[str, bool, float, bool]:
    """What tells formats of the same images apart."""
    planes, raw = bool(options.get("planes")), float(options.get("raw") or 0)
    marks = taken.jpegs and region.can_mark() and not planes and raw < 1 and bool(options.get("marks", True))
    return name, planes, raw, marks


def _format(name: str, options: dict[str, Any], before: Mapping[str, Any], channels: int) -> Format:
    words = [] if name == USUAL else ["--format", name]
    carried = {key: before[key] for key in CARRIED if before.get(key)}
    if before.get("quality") and not (options.get("planes") or options.get("raw")):
        carried["quality"] = before["quality"]
    for key, value in {**carried, **options}.items():
        if isinstance(value, bool):
            words.append(f"--{key}" if value else f"--no-{key}")
        else:
            words += [f"--{key.replace('_', '-')}", f"{value:g}"]
    if before.get("value_range"):
        words += ["--value-range", *(f"{value:g}" for value in before["value_range"])]
    given = {} if channels == 3 else {"channels": channels}
    return Format({"format": name, **given, **options}, tuple(words))
