"""A run of seconds: its recipe, its shards, and what it wrote."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from mae_pipe.catalog import Catalog
from mae_pipe.sharding import build

RECIPE = """
task = "pretrain"
[data]
size = 16
global_batch = 8
micro_batch = 4
workers = 1
[encoder]
width = 32
depth = 1
heads = 2
patch = 4
[decoder]
width = 16
depth = 1
heads = 2
[schedule]
epochs = {epochs}
warmup_epochs = 1
[engine]
precision = "fp32"
[saving]
every_epochs = 100
[logging]
every_steps = 1
pictures_every_epochs = 100
"""


def prepared(images: Path, folder: Path, *, epochs: int) -> tuple[Path, Path]:
    """A recipe file of 3 steps an epoch of the 24 images, and shards of them; of names that want care in a shell."""
    recipe, shards = folder / "tiny 1.toml", folder / "my shards"
    recipe.write_text(RECIPE.format(epochs=epochs))
    build(images, shards, catalog=Catalog(), workers=1, per_shard=100)
    return recipe, shards


def losses(run: Path) -> dict[int, float]:
    """The loss of every step that the run has journalled; a step that came twice is an error."""
    journal = run / "metrics.jsonl"
    rows = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    steps = [row["step"] for row in rows if row["kind"] == "train"]
    assert len(steps) == len(set(steps))
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
