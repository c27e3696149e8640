"""What other readers of tars look for beside them: counts and lists in JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mae_pipe.data.manifest import Manifest, Split

INFO = "_info.json"  # timm
SIZES = "sizes.json"  # open_clip


def names(splits: list[str]) -> list[str]:
    """Of all these files."""
    return [INFO, SIZES, *map(_wids, splits)]


def save(out: Path, manifest: Manifest) -> None:
    """Write them, where the shards are tars in ``out``."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    if manifest.base is not None or not all(shard.name.endswith(".tar") for shard in shards):
        return
    timm = {name: _of_timm(name, split) for name, split in manifest.splits.items()}
    _write(out / INFO, {"name": "mae-pipe", "splits": timm})
    _write(out / SIZES, {shard.name: shard.images for shard in shards})
    for name, split in manifest.splits.items():
        _write(out / _wids(name), _of_wids(name, split))


def _of_timm(name: str, split: Split) -> dict[str, Any]:
    return {
        "name": name,
        "num_samples": split.images,
        "filenames": [shard.name for shard in split.shards],
        "shard_lengths": [shard.images for shard in split.shards],
    }


def _of_wids(name: str, split: Split) -> dict[str, Any]:
    shards = [{"url": shard.name, "nsamples": shard.images, "filesize": shard.bytes} for shard in split.shards]
    return {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": name, "shardlist": shards}


def _wids(split: str) -> str:
    return f"wids-{split}.json"


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
