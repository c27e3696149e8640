"""Read batches in worker processes, and end in a way that is asked for: no cleaning up must be needed.

Arguments: SHARDS HOW ("hold": tell the worker processes and wait for a line; "raise": an error in the reader; "leave":
the script ends in the middle). A bare script without a guard, as people write them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.data.order import Share
from mae_pipe.data.stream import open_stream

shards, how = Path(sys.argv[1]), sys.argv[2]
data = recipe.Data(size=16, workers=2, worker_kind="process")
stream = open_stream(shards, "train", data, seed=0, share=Share(micro_batch=4), catalog=Catalog())
batches = stream.batches()
held = [next(batches) for _ in range(3)]
children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
print(*children, flush=True)
if how == "raise":
    raise ValueError("in the reader")
if how == "hold":
    sys.stdin.readline()
    next(batches)
