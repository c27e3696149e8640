"""Two ranks pretrain; after two steps one image's bytes are damaged on the disk. Arguments: SHARDS RUN.

Prints the exit codes of the ranks, and the seconds from the damage to the end, as JSON; the ranks say what the command
line does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch

from mae_pipe import launch, watchdog
from mae_pipe.catalog import Catalog
from mae_pipe.data.batch import Batch
from mae_pipe.data.index import SampleIndex
from mae_pipe.data.manifest import Manifest
from mae_pipe.engine.library import deepspeed
from mae_pipe.errors import MaePipeError
from mae_pipe.pretraining import pretrain
from tests.workers import forked
from tests.workers.journey import chosen


def damage(shards: Path) -> None:
    """Flip every bit in the middle of the first image of the second shard."""
    manifest = Manifest.load(shards)
    index = SampleIndex.load(shards, manifest.splits["train"].index)
    row = int((index.shard == 1).argmax())
    placed = index.placed(row)
    with (shards / manifest.splits["train"].shards[1].name).open("r+b") as file:
        file.seek(placed.offset + placed.size // 2)
        old = file.read(8)
        file.seek(-len(old), os.SEEK_CUR)
        file.write(bytes(byte ^ 255 for byte in old))


def work(shards: Path, run: Path) -> None:
    """What a rank does."""

    def seen(step: int, batch: Batch, loss: torch.Tensor) -> None:
        if (step, launch.place().rank) == (2, 0) and not (run / "began").exists():
            (run / "began").write_text(str(time.time()))
            damage(shards)

    try:
        pretrain(chosen(1), shards, run, catalog=Catalog(), seen=seen)
    except MaePipeError as error:
        if watchdog.leave(error):
            print(f"mae-pipe: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)


def main() -> None:
    deepspeed()
    shards, run = map(Path, sys.argv[1:])
    codes = forked.end(forked.start(2, work, shards, run), 100)
    print(json.dumps([codes, time.time() - float((run / "began").read_text())]))


if __name__ == "__main__":
    main()
