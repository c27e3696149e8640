"""The names in an archive, read as a folder of the same layout would be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mae_pipe.api import Asked, DataError, ImageSource, Item

from .names import why_not


def listed(names: list[str], asked: Asked, path: Path) -> Iterator[Item]:
    """An item for every name, whose place is that name; ``path`` is the archive, for people.

    One folder that holds everything is looked through: photos/CLASS/x.jpg is CLASS/x.jpg.
    """
    if len(set(names)) < len(names):
        seen: set[str] = set()
        first = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise DataError(f"{path} holds {first!r} twice; pack it again with one file of each name")
    reasons = {name: _why_unsafe(name) or _hidden(name) or why_not(name, arrays=asked.arrays) for name in names}
    images = [name for name in names if not reasons[name]]
    top = _top(images)
    splits = set() if asked.whole else _splits(images, top, path)
    classes = _classes(images, top, splits) if asked.labels else set()
    for name in sorted(names, key=lambda name: name.split("/")):
        reason, inner = reasons[name], name.removeprefix(top)
        if splits and (inner.partition("/")[0] not in splits or "/" not in inner):
            yield Item(name, min(splits), refused=reason or "beside the split folders, so of no split")
            continue
        split = inner.partition("/")[0] if splits else ""
        prefix = f"{top}{split}/" if split else top
        below = name.removeprefix(prefix)
        first, inside, _ = below.partition("/")
        label = first if inside and (split, first) in classes else None
        if not reason and label is None and any(its == split for its, _ in classes):
            reason = "beside the class folders, so of no class"
        yield Item(below, split or "train", label, prefix=prefix, refused=reason)


def _splits(images: list[str], top: str, path: Path) -> set[str]:
    """The split folders; none where the folders are classes."""
    names = {first for name in images for first, below, _ in [name.removeprefix(top).partition("/")] if below}
    found = [name for name in ImageSource.SPLITS if name in names]
    if found and len(found) < len(names) and "train" in found:
        others = ", ".join(sorted(names - set(found))[:3])
        raise DataError(
            f"{path} has {', '.join(found)} beside other folders ({others}), so it is not clear whether they are "
            f"splits or classes; pack it without the others, or give --split NAME to take all as classes"
        )
    return names if len(found) == len(names) else set()


def _top(images: list[str]) -> str:
    """The folder that all images lie in below which there are folders, such as "photos/"; "" where there is none."""
    tops = {name.partition("/")[0] for name in images}
    if len(tops) != 1 or not all(name.count("/") > 1 for name in images):
        return ""
    top = tops.pop()
    return "" if top in ImageSource.SPLITS else f"{top}/"


def _classes(images: list[str], top: str, splits: set[str]) -> set[tuple[str, str]]:
    """(split, folder) of every class; the split is "" where there are none."""
    found = set()
    for name in images:
        parts = name.removeprefix(top).split("/")
        split = parts.pop(0) if splits else ""
        if len(parts) > 1:
            found.add((split, parts[0]))
    return found


def _why_unsafe(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or "\\" in name:
        return "a path that leads out of the archive"
    return ""


def _hidden(name: str) -> str:
    parts = name.split("/")
    return "a hidden file" if any(part.startswith(".") for part in parts) or parts[0] == "__MACOSX" else ""
