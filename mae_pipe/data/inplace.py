"""Shards that somebody else made, indexed where they lie: not a byte of them is written."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path

from mae_pipe.data.manifest import Shard
from mae_pipe.data.plan import Plan, Run
from mae_pipe.data.sample import Placed, Sample
from mae_pipe.data.sources import ImageSource
from mae_pipe.errors import DataError

SAMPLED = 50  # of so many images one is decoded for the statistics, where not all are
PIECE = 10_000  # images of one file that one process looks at: a beton may hold a million


def places(source: ImageSource, run: Run, samples: Iterable[Sample]) -> list[Placed]:
    """Where each admitted image of one shard lies."""
    places_of = {file.key: file.place for file in run.files}
    found = []
    for sample in samples:
        origin = source.origin(places_of[sample.key])
        if origin is None or origin.size is None:
            raise DataError(
                f"{sample.key!r} of {source.path} does not lie in a shard as it is; build shards of it instead"
            )
        found.append(Placed(origin.offset, origin.size, zlib.crc32(sample.image), sample.encoding))
    return found


def shard_of(plan: Plan, run: Run, images: int) -> Shard:
    """The file of a part, by its name below the source; its hash is the first part's work, so that it is read once."""
    from mae_pipe.data.parts import sha256_of

    path = plan.root / run.shard
    return Shard(name=run.shard, images=images, bytes=path.stat().st_size, sha256=sha256_of(path) if run.first else "")


def joined(one: Shard, other: Shard) -> Shard:
    """Two parts of one file."""
    return one.model_copy(update={"images": one.images + other.images, "sha256": one.sha256 or other.sha256})


def hashed(shard: Shard, plan: Plan) -> Shard:
    """With its hash, also where nothing of the first part could be used."""
    from mae_pipe.data.parts import sha256_of

    return shard if shard.sha256 else shard.model_copy(update={"sha256": sha256_of(plan.where(shard.name))})


def base_of(source: Path, out: Path) -> str:
    """Where shards lie, for a manifest in ``out``: relative where ``out`` is inside, so that both move together."""
    home, here = source.resolve(), out.resolve()
    return "/".join([".."] * len(here.relative_to(home).parts)) if home in here.parents else str(home)
