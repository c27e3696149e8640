"""What mae-pipe's own manifest says of shards that are a source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mae_pipe.api import DataError


def said(folder: Path) -> dict[str, Any]:
    """The manifest in a folder, where there is one."""
    path = folder / "manifest.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError, OSError):
        return {}
    return about if isinstance(about, dict) else {}


def classes(path: Path, about: dict[str, Any], labels: bool) -> list[str] | None:
    """The names of the classes; raises ``DataError`` where ``labels`` are wanted and are maps."""
    if labels and about.get("map_classes"):
        raise DataError(
            f"the shards {path} have maps of classes, which are not read from shards; "
            f"build the new ones from the images, or give --set label=none"
        )
    names = about.get("classes")
    return names if isinstance(names, list) and names and all(isinstance(name, str) for name in names) else None
