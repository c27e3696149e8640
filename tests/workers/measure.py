"""Evaluations on one, two and three ranks; writes what every rank was told.

Arguments: SHARDS OUT. The ranks are forked from a process that has imported all and begun nothing.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mae_pipe import recipe
from mae_pipe.building import build
from mae_pipe.catalog import Catalog
from mae_pipe.classification import Classification
from mae_pipe.consensus import Consensus
from mae_pipe.data.batch import Batch
from mae_pipe.data.order import Share
from mae_pipe.data.stream import open_stream
from mae_pipe.fitting import fit
from mae_pipe.means import agree_on_buffers, evaluate, means
from mae_pipe.pretraining import held_out_of

DATA = recipe.Data(size=16, centre_share=1.0, workers=1)
RANKS = {1: 4, 2: 3, 3: 8}  # ranks -> images of one rank at once; with 3 x 8 the last rank has padding only
TWINS = Path(__file__).parents[1] / "twins.py"
CLASSES = 7  # more than there are, so that top-5 is not always right


def untrained(name: str = "linear", **options: Any) -> Classification:
    """The same in every process."""
    options = options or {"std": 1.0}
    return Classification.from_recipe(
        recipe.Downstream(task="probe", data=DATA, head=recipe.Chosen(name=name, options=options)),
        recipe.Pretrain(data=DATA, encoder=recipe.EncoderShape(width=32, depth=1, heads=2, patch=4)),
        None,
        Catalog(),
        classes=CLASSES,
    )


class Alone:
    """A task without an engine."""

    device = torch.device("cpu")

    def __init__(self, task: nn.Module) -> None:
        self.task = task

    def __call__(self, batch: Batch, *, mode: str) -> dict[str, Tensor]:
        return self.task(batch, mode=mode)

    def train(self, mode: bool = True) -> object:
        return self.task.train(mode)


class Watched(Alone):
    """The same, of a rank."""

    def __init__(self, task: nn.Module, share: Share) -> None:
        super().__init__(task)
        self.rank, self.world = share.rank, share.world

    def __call__(self, batch: Batch, mode: str = "loss") -> Any:
        return self.task(batch, mode=mode)


def reading(shards: Path, share: Share) -> dict[str, float]:
    """What a monitor reads of a method of two views."""
    chosen = recipe.Pretrain(
        data=DATA.model_copy(update={"global_batch": 24}),
        method=recipe.Chosen(name="twins"),
        encoder=recipe.EncoderShape(width=32, depth=1, heads=2, patch=4),
        monitor=recipe.Monitor(every_epochs=1, images=9, knn=7),
    )
    catalog = Catalog((TWINS,))
    task = build(chosen, catalog)
    held_out = held_out_of(task, chosen, shards, "train", share=share, catalog=catalog)
    assert held_out is not None
    found = held_out.read(Watched(task, share))
    held_out.close()
    return found


class Marks(nn.Module):
    """Measures that are known for every image, and not a number for padding."""

    def forward(self, batch: Batch, *, mode: str) -> dict[str, Tensor]:
        assert mode == "metrics"
        assert not self.training
        return marks(batch.numbers)


def marks(numbers: Tensor) -> dict[str, Tensor]:
    loss = torch.where(numbers < 0, math.nan, 1 / (1 + numbers))
    table = loss[:, None, None] * torch.arange(6.0).reshape(2, 3)  # sums of any shape
    return {"loss": loss, "third": (numbers % 3 == 0).float(), "table": table}


def rank_of(shards: Path, folder: Path, rank: int, world: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet{world}", rank=rank, world_size=world)
    share = Share(rank, world, RANKS[world])
    stream = open_stream(shards, "val", DATA, seed=0, share=share, catalog=Catalog(), training=False)
    known = open_stream(shards, "train", DATA, seed=0, share=share, catalog=Catalog())
    neighbours = untrained("knn", k=3, others=[5])
    fit(neighbours, known, torch.device("cpu"))
    norm = nn.BatchNorm1d(2)
    assert norm.running_mean is not None
    norm.running_mean.fill_(rank)
    agree_on_buffers(norm)
    found = {
        "task": evaluate(Alone(untrained()), stream),
        "marks": {name: mean.tolist() for name, mean in means(Alone(Marks()), stream).items()},
        "neighbours": evaluate(Alone(neighbours), stream),
        "bank": [neighbours.head.get_buffer(name).tolist() for name in ("bank", "known")],
        "reading": reading(shards, share),
        "mean": norm.running_mean.tolist(),
        "agreed": agreed(rank),
    }
    (folder / f"{world}.{rank}.json").write_text(json.dumps(found))
    stream.close()
    known.close()
    dist.destroy_process_group()


def agreed(rank: int) -> list[dict[str, int]]:
    """The last rank is asked to stop in the third of five steps, by which the others may be far ahead."""
    consensus = Consensus(("stop", "most", "least"), unsaid=-99)
    last = dist.get_world_size() - 1
    said = [{"stop": int(rank == last and n >= 2), "most": 10 * n + rank, "least": -10 * n - rank} for n in range(5)]
    return [*(consensus(**numbers) for numbers in said), consensus.last()]


def main() -> None:
    shards, out = Path(sys.argv[1]), Path(sys.argv[2])
    context = multiprocessing.get_context("fork")
    for world in RANKS:
        ranks = [
            context.Process(target=rank_of, args=(shards, out.parent, rank, world), daemon=True)
            for rank in range(world)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
            if process.exitcode:
                sys.exit(f"a rank of {world} ended with {process.exitcode}")
    told = {
        world: [json.loads((out.parent / f"{world}.{rank}.json").read_text()) for rank in range(world)]
        for world in RANKS
    }
    out.write_text(json.dumps(told))


if __name__ == "__main__":
    main()
