"""Checks of sources."""

from __future__ import annotations

from mae_pipe.data.refusal import Refusal
from mae_pipe.data.sources import Asked, ImageSource
from mae_pipe.testing.subject import require


def knows_its_own(source: ImageSource) -> str:
    """It recognises what it reads, and no path that is not there."""
    name = type(source).__name__
    require(type(source).recognises(source.path), f"{name}.recognises says no to {source.path}, which it reads")
    nowhere = source.path / "nowhere"
    require(not type(source).recognises(nowhere), f"{name}.recognises says yes to a path that is not there")
    return str(source.path.name)


def lists_the_same_again(source: ImageSource) -> str:
    """A second listing has the same images in the same order, and no two of them are one."""
    name = type(source).__name__
    first, second = list(source.items(Asked())), list(source.items(Asked()))
    require(first == second, f"{name}.items gives another listing the second time; sort what a folder holds")
    kept = [item for item in first if not item.refused]
    require(bool(kept), f"{name}.items lists no image in {source.path}")
    places = [item.place or item.prefix + item.path for item in kept]
    require(len(set(places)) == len(places), f"{name}.items lists one place twice")
    return f"{len(kept)} images"


def reads_from_anywhere(source: ImageSource) -> str:
    """Another instance reads any image by its place alone, in any order, with the same bytes and stamp."""
    name = type(source).__name__
    places = [item.place or item.prefix + item.path for item in source.items(Asked()) if not item.refused]
    there = {place: (_read(source, place), source.stamp(place)) for place in places}
    source.close()
    fresh = type(source)(source.path)
    for place in reversed(places):
        same = (_read(fresh, place), fresh.stamp(place)) == there[place]
        require(same, f"{name} reads other bytes at {place!r} when it has not listed before")
    fresh.close()
    return f"{len(places)} images"


def _read(source: ImageSource, place: str) -> bytes | str:
    try:
        return bytes(source.read(place))
    except Refusal as refusal:
        return str(refusal)


CONTRACT = (knows_its_own, lists_the_same_again, reads_from_anywhere)


def check_source(source: ImageSource) -> None:
    """Whether a source keeps its contract on the images at its ``path``; it must be built with that alone."""
    for check in CONTRACT:
        check(source)
