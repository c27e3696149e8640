"""Shards that somebody else made -> a manifest and a sample index of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mae_pipe.catalog import Catalog
from mae_pipe.copies import copied
from mae_pipe.data.address import is_url
from mae_pipe.data.manifest import Manifest
from mae_pipe.errors import DataError
from mae_pipe.sharding import Progress, build

KINDS = {".tar": ("webdataset", "webdataset"), ".beton": ("beton", "ffcv")}  # by ending: its source and its format


def index(
    given: Sequence[str],
    out: Path,
    *,
    catalog: Catalog,
    split: str | None = None,
    image: str = "",
    label: str = "",
    class_names: Path | None = None,
    channels: int | None = None,
    base: str | None = None,
    decode: bool = True,
    marks: bool = True,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Manifest:
    """Index WebDataset tars, or betons, where they lie; ``out`` becomes a folder of shards like any other.

    Args:
        given: tars, and folders of tars; or betons; or URLs of them (``copies``), whose shards stay there.
        split: what all of them are; default: what each one's name says, else "train".
        image, label: see the sources ``webdataset`` and ``beton``.
        base: where the shards will be read, a folder or a URL, where that is not here.
        decode: every image; else one of 50, for the statistics, and of the others the headers.
        marks, workers, overwrite, progress: see ``sharding.build``.
        say: is told what is copied from elsewhere.
    """
    copies = None
    if any(map(is_url, given)):
        if base or not all(map(is_url, given)):
            raise DataError("URLs and files are given together, or --base with URLs; index one place at a time")
        copies = copied(given, list(KINDS), say or (lambda text: None))
        given, base = list(map(str, copies.files)), copies.base
    files = _files(given)
    source, format = KINDS.get(files[0].suffix, KINDS[".tar"])
    home = copies.folder if copies else Path(os.path.commonpath([file.parent for file in files]))
    options: dict[str, Any] = {"files": [str(file.relative_to(home)) for file in files]}
    options |= {name: value for name, value in (("image", image), ("label", label)) if value}
    manifest = build(
        home,
        out,
        catalog=catalog,
        workers=workers,
        splits=[split] if split else [],
        channels=channels,
        class_names=class_names,
        marks=marks,
        source_name=source,
        format=format,
        source_options=options,
        in_place=True,
        base=base,
        glance=not decode,
        overwrite=overwrite,
        progress=progress,
    )
    if copies:
        copies.into_cache(manifest)
    return manifest


def _files(given: Sequence[str]) -> list[Path]:
    """Whole paths, each once, in the order of their names."""
    found = []
    for text in given:
        path = Path(text)
        if path.is_dir():
            inside = [file for ending in KINDS for file in sorted(path.glob(f"*{ending}"))]
            if not inside:
                raise DataError(f"{path} holds no .tar or .beton files; give them, or the folder that holds them")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"{path} is not there; give the tars or betons, or the folder that holds them")
    whole = sorted({path.absolute() for path in found})
    if not whole:
        raise DataError("no shards were given; give the tars or betons, or the folder that holds them")
    if len({path.suffix == ".beton" for path in whole}) > 1:
        raise DataError(f"{whole[0]} and {whole[-1]} are given together; index tars and betons one after the other")
    return whole
