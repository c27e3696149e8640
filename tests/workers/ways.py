"""One recipe pretrained in several ways, one after the other.

Arguments: RECIPE SHARDS OUT WAY... (a way is "world.stage.micro-batch", and becomes a run folder of that name in OUT).
"""

from __future__ import annotations

import sys
from pathlib import Path

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.engine.library import deepspeed
from mae_pipe.pretraining import pretrain
from tests.workers import forked


def work(name: str, shards: Path, out: Path, stage: str, micro: str) -> None:
    """What a rank does."""
    chosen = recipe.load(name, (f"engine.zero={stage}", f"data.micro_batch={micro}"))
    assert isinstance(chosen, recipe.Pretrain)
    pretrain(chosen, shards, out, catalog=Catalog())


def main() -> None:
    name, shards, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    deepspeed()
    for way in sys.argv[4:]:
        world, stage, micro = way.split(".")
        if any(codes := forked.end(forked.start(int(world), work, name, shards, out / way, stage, micro))):
            sys.exit(f"the ranks of {way} ended with {codes}")


if __name__ == "__main__":
    main()
