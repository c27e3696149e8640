"""What happens to a head before its first step: it is fitted, checked; and how it is measured without an engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mae_pipe import guards, launch
from mae_pipe.classification import Classification
from mae_pipe.contracts import Head
from mae_pipe.data.batch import Batch
from mae_pipe.data.device import placed
from mae_pipe.data.order import Share
from mae_pipe.data.stream import Stream
from mae_pipe.engine import require
from mae_pipe.errors import RecipeError
from mae_pipe.means import Summary, evaluate
from mae_pipe.optim import Groups
from mae_pipe.recipe import Downstream, Sliding
from mae_pipe.runs import Run
from mae_pipe.sliding import WHOLE, Slider, measures


def summary_of(head: Head) -> Summary:
    """The head's summary, with the loss where it leaves it out."""

    def summary(means: dict[str, Tensor]) -> dict[str, float]:
        return {"loss": float(means["loss"]), **head.summary(means)}

    return summary


def measured(model: Any, held_out: Stream, head: Head, sliding: Sliding) -> dict[str, float]:
    """What is reported of a split: of centre views; or of whole images, with "loss" and "centre_..." of centre views.

    All ranks call it. Where windows slide, the head's main metric is one of ``sliding.measures``.
    """
    found = evaluate(model, held_out, summary_of(head))
    if sliding.stride is None:
        return found
    classes = len(held_out.shelf.manifest.classes_of("map"))
    whole = measures(Slider(held_out, sliding, classes).confusion(model))
    centre = {name if name == "loss" else f"centre_{name}": value for name, value in found.items()}
    return {**centre, **whole}


def check_sliding(head: Head, recipe: Downstream) -> None:
    """Refuse sliding windows for what has no maps, or over gaps that no window sees."""
    if recipe.sliding.stride is None:
        return
    if head.labels != "map" or head.main not in WHOLE:
        raise RecipeError(
            f"sliding windows measure {', '.join(WHOLE)} of maps, but the head {recipe.head.name!r} says {head.main} "
            f"of labels of the kind {head.labels!r}; leave sliding.stride out"
        )
    if any(step > side for step, side in zip(recipe.sliding.steps, recipe.data.sides, strict=True)):
        raise RecipeError(
            f"sliding.stride {recipe.sliding.stride} is more than data.size {recipe.data.size}, so that windows would "
            "leave pixels out; set it to data.size or less"
        )


class Plain:
    """A task without an engine, for what is measured and not trained."""

    def __init__(self, task: Classification) -> None:
        here = launch.join()
        self.device = torch.device("cuda", here.local_rank) if torch.cuda.is_available() else torch.device("cpu")
        self.task = task.to(self.device)

    def __call__(self, batch: Batch, *, mode: str) -> Any:
        return self.task(batch, mode=mode)

    def train(self, mode: bool = True) -> object:
        return self.task.train(mode)


def prepare(task: Classification, recipe: Downstream, groups: Groups, stream: Stream, folder: Run) -> None:
    """Before a first step: fit the head where it wants it, and refuse what would train to nothing.

    Every rank fits; rank 0 checks.
    """
    if recipe.task == "finetune" and not any(p.requires_grad for p in task.head.parameters()):
        raise RecipeError(f"the head {recipe.head.name!r} has nothing to train; use it with: mae-pipe probe")
    if recipe.mixing.on and stream.share.micro_batch == 1:
        raise RecipeError(
            "mixing wants two images at once on a rank, and here it is one; raise data.micro_batch or data.global_batch"
        )
    check_sliding(task.head, recipe)
    require(recipe, launch.join().world)
    begun = any(folder.checkpoints.glob("step-*"))
    if task.head.fits and not (begun and groups):
        fit(task, stream, Plain(task).device)
    if groups and not begun:
        folder.on_rank_0(lambda: _check(task, recipe, groups, stream))


def fit(task: Classification, stream: Stream, device: torch.device) -> None:
    """Show the head the tokens of all training images, in their centre view and the order of the shards.

    Each rank computes its share of them, and every rank sees all. All ranks call it.
    """
    whole = Stream(
        stream.shelf, stream.data, seed=0, share=stream.share, training=False, rows=stream.rows, labels=stream.labels
    )
    whole.instead = stream.instead
    state = task.training
    task.eval()
    with torch.no_grad(), closing(whole.once()) as batches:  # type: ignore[type-var]
        task.head.fit(_of_all_ranks(task, stream.share, (there for _, there in placed(batches, device))))
    task.train(state)


def _of_all_ranks(task: Classification, share: Share, batches: Iterator[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens and labels without padding; one rank's at a time, so that the memory does not grow with their number."""
    for batch in batches:
        mine = task.features(batch).contiguous(), batch.labels, batch.numbers
        for rank in range(share.world):
            tokens, labels, numbers = mine if rank == share.rank else map(torch.empty_like, mine)
            for tensor in (tokens, labels, numbers) if share.world > 1 else ():
                dist.broadcast(tensor, rank)
            real = numbers >= 0
            if bool(real.any()):
                yield tokens[real], labels[real]


def _check(task: Classification, recipe: Downstream, groups: Groups, stream: Stream) -> None:
    """What would train to nothing is refused: parameters that are not in the loss, a layer decay that matches none."""
    with closing(stream.batches()) as batches:  # type: ignore[type-var]
        found = list(guards.of_connections(Plain(task).task, next(batches)))
    if recipe.task == "finetune":
        depth, decay = len(task.encoder.blocks), recipe.optimizer.layer_decay
        found.append(guards.of_layer_decay(groups, depth, decay, recipe.tune_blocks))
    guards.require(iter(found))
