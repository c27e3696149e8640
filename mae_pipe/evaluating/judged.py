"""What a model says of every image of a split: a row an image, the same rows on every rank."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from mae_pipe.data.device import placed
from mae_pipe.errors import PluginError
from mae_pipe.fitting import Plain
from mae_pipe.means import Images

COLUMNS = ("number", "label", "predicted", "probability", "top5", "nll", "brier")
BEST = 5


@dataclass(frozen=True)
class Judged:
    """[n] each, in the order of the shards; labels and predictions are classes of the run.

    Attributes:
        probability: of the predicted class, float64.
        top5: whether the label is among the five likeliest classes.
        nll: -ln of the label's probability.
        brier: sum over classes of (probability - truth) squared (Brier 1950), in [0, 2].
        own: what the head itself measures of each image, "loss" among them.
    """

    number: NDArray[np.int64]
    label: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probability: NDArray[np.float64]
    top5: NDArray[np.bool_]
    nll: NDArray[np.float64]
    brier: NDArray[np.float64]
    own: dict[str, NDArray[np.float64]]


@torch.no_grad()
def judge(model: Plain, source: Images, labels: Tensor, allowed: Tensor | None) -> Judged:
    """Every image once, over all ranks; all ranks call it.

    Args:
        labels: [classes of the set] int64: the run's class of each of the set's.
        allowed: the run's classes that an answer may be, rising; None: all. The head's own measures are then left
            out, as they are of all classes.
    """
    model.train(False)
    names: list[str] = []
    parts: list[Tensor] = []
    labels = labels.to(model.device)
    with closing(source.once()) as batches:  # type: ignore[type-var]
        for _, batch in placed(batches, model.device):
            truth = labels[batch.labels.clamp(min=0)]  # padding has -1
            output = model.task.head(model.task.features(batch))
            if output.dim() != 2:
                raise PluginError(
                    f"the head's output has shape {list(output.shape)}; a class an image is measured from [B, C]"
                )
            columns = _columns(output.double(), truth, allowed)
            own: dict[str, Tensor] = {}
            if allowed is None:
                own = {"loss": model.task.head.loss(output, truth), **model.task.head.metrics(output, truth)}
            own = {name: value for name, value in own.items() if value.dim() == 1}
            names = list(own)
            numbers = [batch.numbers.double(), truth.double()]
            parts.append(torch.stack([*numbers, *columns, *(value.double() for value in own.values())], dim=1))
    table = _of_all_ranks(torch.cat(parts))
    table = table[table[:, 0] >= 0]
    table = table[table[:, 0].argsort()]
    if not np.array_equal(table[:, 0], np.arange(source.images)):
        raise RuntimeError(f"{len(table)} of {source.images} images were measured")
    of = dict(zip((*COLUMNS, *(f"own {name}" for name in names)), table.T, strict=True))
    return Judged(
        number=of["number"].astype(np.int64),
        label=of["label"].astype(np.int64),
        predicted=of["predicted"].astype(np.int64),
        probability=of["probability"],
        top5=of["top5"] > 0,
        nll=of["nll"],
        brier=of["brier"],
        own={name: of[f"own {name}"] for name in names},
    )


def _columns(output: Tensor, truth: Tensor, allowed: Tensor | None) -> list[Tensor]:
    """[B, C] float64 and [B] -> predicted, probability, top5, nll, brier; [B] float64 each."""
    if allowed is not None:
        kept = torch.full_like(output, -torch.inf)
        kept[:, allowed] = output[:, allowed]
        output = kept
    logs = output.log_softmax(dim=1)
    chances = logs.exp()
    count = output.shape[1] if allowed is None else len(allowed)
    best = output.topk(min(BEST, count), dim=1).indices  # [B, at most 5]
    right = chances.gather(1, truth[:, None])[:, 0]
    return [
        best[:, 0].double(),
        chances.gather(1, best[:, :1])[:, 0],
        (best == truth[:, None]).any(dim=1).double(),
        -logs.gather(1, truth[:, None])[:, 0],
        chances.square().sum(dim=1) - 2 * right + 1,
    ]


def _of_all_ranks(mine: Tensor) -> NDArray[np.float64]:
    """[n, K] of each rank, as many rows on each -> those of all."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return mine.cpu().numpy()
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine.contiguous())
    return torch.cat(parts).cpu().numpy()
