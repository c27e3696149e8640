"""Shards at URLs are copied here to be indexed, as every byte has to be read once; then the cache keeps them."""

from __future__ import annotations

import hashlib
import itertools
import posixpath
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mae_pipe.data.address import WEB, Address
from mae_pipe.data.cache import Cache, home
from mae_pipe.data.fetch import fetch, filesystem
from mae_pipe.data.manifest import Manifest
from mae_pipe.disk import writing
from mae_pipe.errors import DataError
from mae_pipe.wording import counted

LIMIT = 1 << 42  # bytes of a shard
FETCHERS = 4
MOST = 1_000_000  # URLs that one pattern may stand for
_BRACES = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Copies:
    """Shards that were copied: the folder of the copies, and the URL that it stands for."""

    folder: Path
    base: str
    files: list[Path]

    def into_cache(self, manifest: Manifest) -> None:
        """Let the cache have them, so that the first epoch need not fetch them again; what it has no room for goes."""
        cache = Cache()
        shards = [shard for split in manifest.splits.values() for shard in split.shards]
        for shard in shards:
            if (self.folder / shard.name).is_file():
                cache.adopt(shard, self.folder / shard.name)
        for path in self.files:
            path.unlink(missing_ok=True)


def copied(given: Sequence[str], endings: Sequence[str], say: Callable[[str], None]) -> Copies:
    """Copy shards from URLs, all of one place, into the user's cache; what is there already is kept.

    Args:
        given: URLs of shards, also such as ``https://host/train-{000..127}.tar``; or of folders, but on the web.
        endings: of the names of shards.
    """
    urls = [found for text in given for pattern in braces(text) for found in _listed(pattern, endings)]
    addresses = list({address.url: address for address in urls}.values())
    roots = {address.url.partition("://")[2].partition("/")[0] for address in addresses}
    if len(roots) > 1 or len({address.protocol for address in addresses}) > 1:
        raise DataError(f"{', '.join(sorted(roots)[:3])} are several places; index the shards of one place at a time")
    paths = [address.url.partition("://")[2] for address in addresses]
    common = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    base = f"{addresses[0].protocol}://{common}"
    folder = home() / "copies" / hashlib.sha256(base.encode()).hexdigest()[:16]
    files = [folder / path[len(common) :].lstrip("/") for path in paths]
    wanted = [(one, file) for one, file in zip(addresses, files, strict=True) if not file.is_file()]
    if wanted:
        say(f"copying {counted(len(wanted), 'shard')} from {base} to {folder}, to be read once")
    stop = threading.Event()
    with ThreadPoolExecutor(FETCHERS, "fetch") as threads:
        try:
            for done in [threads.submit(_copy, address, file, stop) for address, file in wanted]:
                done.result()
        finally:
            stop.set()
            threads.shutdown(wait=True, cancel_futures=True)
    return Copies(folder, base, files)


def _copy(address: Address, path: Path, stop: threading.Event) -> None:
    new = path.with_name(path.name + ".part")
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with new.open("wb") as file:
                fetch(address, file.write, limit=LIMIT, stop=stop)
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)


def _listed(text: str, endings: Sequence[str]) -> list[Address]:
    """A URL of a shard, or the shards of a folder."""
    if "?" in text:
        raise DataError(
            f"{text.partition('?')[0]} has a key in it, after the ?, which an index would tell to all who read it; "
            "give the URL without, and the key as its provider's tools take it"
        )
    address = Address.of(text)
    if text.endswith(tuple(endings)):
        return [address]
    what = " or ".join(endings)
    if address.protocol in WEB:
        raise DataError(f"{address} does not end in {what}; name the shards, such as {address}/train-{{000..127}}.tar")
    system = filesystem(address)
    path = system._strip_protocol(address.url)
    try:
        names = [posixpath.basename(str(name).rstrip("/")) for name in system.ls(path, detail=False)]
    except Exception as error:  # each library has its own
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{address} cannot be listed ({first}); check the address and your access to it") from error
    found = [address / name for name in sorted(names) if name.endswith(tuple(endings))]
    if not found:
        raise DataError(f"{address} holds no files that end in {what}; give the URL of the folder that holds them")
    return found


def braces(text: str) -> list[str]:
    """``a-{08..10}.tar`` and ``a-{x,y}.tar`` spelt out, as shells and webdataset do it."""
    found = _BRACES.search(text)
    if found is None:
        return [text]
    inside = found[1]
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if ends is None and "," not in inside:
        raise DataError(f"{found[0]} in {text} is no range; expected one such as {{000..127}}, or {{a,b}}")
    words = inside.split(",")
    if ends is not None:
        first, last = int(ends[1]), int(ends[2])
        if not 0 <= last - first < MOST:
            raise DataError(f"{found[0]} in {text} is no rising range of at most {MOST:,} numbers")
        width = len(ends[1]) if ends[1].startswith("0") or len(ends[1]) == len(ends[2]) else 0
        words = [str(number).zfill(width) for number in range(first, last + 1)]
    rest = [text[: found.start()] + word + text[found.end() :] for word in words]
    return list(itertools.chain.from_iterable(map(braces, rest)))
