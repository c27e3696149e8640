"""Building, indexing and checking shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_pipe.verbs.given import Place, catalog_of, path_of, place_of

if TYPE_CHECKING:
    from mae_pipe.data.manifest import Manifest

Progress = Callable[[int, int, int], None]  # images done, refused among them, images in all


def shard(
    source: Place,
    out: Place,
    *,
    format: str = "webdataset",
    workers: int | None = None,
    per_shard: int = 2000,
    quality: int | None = None,
    max_side: int | None = None,
    short_side: int | None = None,
    splits: Sequence[str] = (),
    channels: int | None = None,
    value_range: tuple[float, float] | None = None,
    labels: Place | None = None,
    maps: Place | None = None,
    class_names: Place | None = None,
    ignore_classes: Sequence[int] = (),
    planes: bool = False,
    raw: float = 0.0,
    marks: bool = True,
    shuffle: bool = False,
    source_name: str | None = None,
    source_options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    plugins: Sequence[Place] = (),
    progress: Progress | None = None,
) -> Manifest:
    """Build shards in ``out`` from the images in ``source``; what cannot be used is named in the manifest.

    Args:
        workers: processes; they change no byte. Default: one a core. In a script that starts itself anew (spawn) the
            call belongs below ``if __name__ == "__main__"``.
        splits: "NAME", or "val=0.1" to hold a tenth out.
        source_name, source_options: how ``source`` is laid out; default: as it looks.
        progress: is told (done, refused, in all).

    The others are those of ``mae-pipe shard --help``.

    Raises:
        DataError: ``source`` holds no images that can be used, or an option does not go with it.
        DiskError: ``out`` cannot be written.
    """
    from mae_pipe.sharding import build

    return build(
        Path(source),
        Path(out),
        format=format,
        catalog=catalog_of(plugins),
        workers=workers,
        per_shard=per_shard,
        quality=quality,
        max_side=max_side,
        short_side=short_side,
        splits=splits,
        channels=channels,
        value_range=value_range,
        labels=path_of(labels),
        maps=path_of(maps),
        class_names=path_of(class_names),
        ignore_classes=ignore_classes,
        planes=planes,
        raw=raw,
        marks=marks,
        shuffle=shuffle,
        source_name=source_name,
        source_options=source_options or {},
        overwrite=overwrite,
        progress=progress,
    )


def index(
    shards: Place | Sequence[Place],
    out: Place,
    *,
    split: str | None = None,
    label: str = "",
    image: str = "",
    class_names: Place | None = None,
    channels: int | None = None,
    base: str | None = None,
    decode: bool = True,
    marks: bool = True,
    workers: int | None = None,
    overwrite: bool = False,
    plugins: Sequence[Place] = (),
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Manifest:
    """Index WebDataset tars or betons that others made, where they lie; ``out`` is then a folder of shards.

    Args:
        shards: files, folders or URLs of them.
        say: is told what is done beside, such as copies of what is elsewhere.

    The others are those of ``mae-pipe index --help``.

    Raises:
        DataError: a file is cut or damaged, or holds no images.
    """
    from mae_pipe.indexing import index as build

    return build(
        [str(one) for one in ([shards] if isinstance(shards, str | Path) else shards)],
        Path(out),
        catalog=catalog_of(plugins),
        split=split,
        image=image,
        label=label,
        class_names=path_of(class_names),
        channels=channels,
        base=base,
        decode=decode,
        marks=marks,
        workers=workers,
        overwrite=overwrite,
        say=say,
        progress=progress,
    )


def verify(
    shards: Place, *, plugins: Sequence[Place] = (), progress: Callable[[int, int], None] | None = None
) -> list[str]:
    """Check every hash, count, key and checksum of ``shards``; a sentence for each damage.

    Args:
        progress: is told (bytes done, bytes in all).

    Raises:
        DataError: there are no shards.
    """
    from mae_pipe.direct import shards_of
    from mae_pipe.verifying import verify as check

    catalog, place = catalog_of(plugins), place_of(shards)
    return check(shards_of(place, catalog) if isinstance(place, str) else place, catalog=catalog, progress=progress)
