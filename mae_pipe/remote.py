"""Shards at a URL: their manifest, index and marks are kept here, the shards are fetched as they are needed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from pathlib import Path
from typing import Any

from filelock import FileLock

from mae_pipe.data.address import Address, is_url
from mae_pipe.data.cache import home
from mae_pipe.data.fetch import fetch
from mae_pipe.data.manifest import NAME, Manifest, Shard
from mae_pipe.disk import write_whole, writing
from mae_pipe.errors import DataError

LIMIT = 1 << 30  # bytes of a manifest
COPIES = 3  # times that a file is fetched, if what came is another one


def mirrored(url: str) -> Path:
    """A folder of this machine whose manifest is that of the shards at ``url``, and says that they lie there.

    What the manifest names besides the shards comes with it. Every process of a job may call it at once.
    """
    address = Address.of(url)
    text = _manifest(address)
    place = home() / "remote" / hashlib.sha256(str(address).encode()).hexdigest()[:16]
    folder = place / hashlib.sha256(address.url.encode() + text).hexdigest()[:16]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        place.chmod(0o700)  # the URL may have a key in it
    with FileLock(place / "lock"):  # the first process of a job fetches, the others wait for it
        if not (folder / NAME).exists():
            manifest = _here(text, address, folder)
            for split in manifest.splits.values():
                for part in (split.index, split.marks):
                    if part is not None:
                        _keep(part, address / part.name, folder)
            with writing(folder):
                manifest.save(folder)
                (folder / ("." + NAME)).unlink()
    Manifest.load(folder)
    return folder


def _manifest(address: Address) -> bytes:
    """The manifest's text; what is no JSON at all may have been damaged on the way, and is fetched again."""
    for _ in range(COPIES):
        text = bytearray()
        fetch(address / NAME, text.extend, limit=LIMIT, stop=threading.Event())
        with contextlib.suppress(ValueError, RecursionError):
            json.loads(text)
            break
    return bytes(text)


def _here(text: bytes, address: Address, folder: Path) -> Manifest:
    """The manifest, checked, with a base that says where the shards are, from anywhere."""
    try:
        values: dict[str, Any] = json.loads(text)
        base = values.get("base")
    except (ValueError, AttributeError, RecursionError):
        raise DataError(f"{address / NAME} is not a manifest; give the URL of the folder of a manifest.json") from None
    if base is None:
        values["base"] = address.url
    elif not isinstance(base, str) or base.startswith(("/", "file:")):
        raise DataError(f"{address / NAME} says that its shards are at {base!r}; shards at a URL cannot lie there")
    elif not is_url(base):
        values["base"] = (address / base).url
    write_whole(folder / ("." + NAME), json.dumps(values).encode())
    return Manifest.load(folder, name="." + NAME)


def _keep(part: Shard, address: Address, folder: Path) -> None:
    """Fetch one of the small files, whole and as the manifest says, or not at all."""
    path = folder / part.name
    for _ in range(COPIES):
        new = path.with_name(f".{path.name}.part")
        with writing(folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            with new.open("wb") as file:
                came = fetch(address, file.write, size=part.bytes, limit=part.bytes, stop=threading.Event())
        if came.sha256 == part.sha256:
            new.replace(path)
            return
        new.unlink()
    raise DataError(
        f"{address} is not the file that its manifest names (its sha256 is {came.sha256[:16]}..., not "
        f"{part.sha256[:16]}...); copy all of the folder there again"
    )
