"""A codebook learned, and a tokenizer measured, on one and on two ranks; writes what every rank has.

Arguments: SHARDS OUT. The ranks are forked from a process that has imported all and begun nothing.
"""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.data.batch import Batch
from mae_pipe.data.order import Share
from mae_pipe.data.stream import open_stream
from mae_pipe.tokenizer.quantize import VectorQuantizer
from mae_pipe.tokenizer.task import Tokenizing
from mae_pipe.tokenizer.training import evaluate

WORLDS = (1, 2)
RECIPE = recipe.Tokenizer(
    data=recipe.Data(size=16, centre_share=1.0, workers=0),
    tokenizer=recipe.TokenizerShape(codebook=32, code_width=4, width=4, blocks=0, downsampling=4),
)


def vectors(step: int) -> Tensor:
    """[8, 4, 3, 3]: of all ranks together."""
    return torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(step)) + 0.3


class Alone:
    """A task without an engine."""

    device = torch.device("cpu")

    def __init__(self, task: nn.Module) -> None:
        self.task = task

    def __call__(self, batch: Batch, *, mode: str) -> dict[str, Tensor]:
        return self.task(batch, mode=mode)

    def train(self, mode: bool = True) -> object:
        return self.task.train(mode)


def rank_of(shards: Path, folder: Path, rank: int, world: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet{world}", rank=rank, world_size=world)
    torch.manual_seed(0)
    quantizer = VectorQuantizer(8, 4, decay=0.8).train()
    begun = quantizer.codes.clone()
    quantizer.uses.fill_(5.0)  # none is dead: which vector takes a dead one's place may depend on ranks
    quantizer.sums.copy_(5 * begun)
    for step in range(5):
        quantizer(vectors(step)[rank::world], 1.0)
        quantizer.after_step()
    learned = quantizer.codes.clone()
    torch.manual_seed(rank)  # ranks draw other numbers, and must take rank 0's
    quantizer.uses.zero_()
    quantizer(vectors(9)[rank::world], 1.0)
    quantizer.after_step()
    share = Share(rank, world, 5)
    stream = open_stream(shards, "train", RECIPE.data, seed=0, share=share, catalog=Catalog(), training=False)
    task = Tokenizing.from_recipe(RECIPE, 10)
    found = evaluate(Alone(task), stream, 32, folder if rank == 0 else None)  # type: ignore[arg-type]
    stream.close()
    torch.save({"learned": learned, "revived": quantizer.codes, "found": found}, folder / f"{world}.{rank}.pt")
    dist.destroy_process_group()


def main() -> None:
    shards, folder = Path(sys.argv[1]), Path(sys.argv[2])
    context = multiprocessing.get_context("fork")
    for world in WORLDS:
        ranks = [context.Process(target=rank_of, args=(shards, folder, rank, world)) for rank in range(world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
            if process.exitcode:
                sys.exit(f"a rank of {world} ended with {process.exitcode}")


if __name__ == "__main__":
    main()
