"""``mae-pipe probe --logistic``: a logistic regression on features, its L2 chosen on held-out training images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from mae_pipe.catalog import Catalog
from mae_pipe.errors import RecipeError
from mae_pipe.features import heads, logistic
from mae_pipe.features.results import Probed, alone, keep, on_device, parted
from mae_pipe.fitting import Plain
from mae_pipe.opening import opened
from mae_pipe.recipe import Chosen, Downstream
from mae_pipe.stopping import stopping_at_once

HOW = "logistic"


@stopping_at_once()
def regression(
    run: Path,
    recipe: Downstream,
    *,
    catalog: Catalog,
    aside: float = 0.1,
    shards: Path | str | None = None,
    out: Path | None = None,
    from_scratch: bool = False,
    console: Console | None = None,
) -> Probed:
    """Fit a logistic regression on the features that ``recipe``'s linear head would see, and measure it.

    Features are standardised by the training images' mean and deviation of each number, which the layer that is
    written takes in: ``model.safetensors`` holds a plain linear head.

    Args:
        aside: share of the training images that chooses C; the regression is then fitted on all of them.
        shards, out, from_scratch: as for ``downstream``.
    """
    if not aside:
        raise RecipeError("--held-out 0 leaves no images to choose L2 on; give a share such as 0.1")
    pool = recipe.head.options.get("pool")
    plain = Chosen(name=recipe.head.name, options={"pool": pool} if pool else {})
    recipe = recipe.model_copy(update={"head": plain, "label_smoothing": 0.0})
    begun = opened(
        run, recipe, catalog=catalog, shards=shards, out=out, how=HOW, from_scratch=from_scratch, console=console
    )
    alone(begun, HOW)
    head = begun.task.head
    _, layer = heads.parts_of(head)
    train, held_out = (on_device(Plain(begun.task).device, features) for features in begun.recall(0))
    rows = begun.stream.rows if begun.stream.rows is not None else np.arange(len(train.labels))
    kept, judges = parted(rows, aside, begun.recipe.seed)
    classes = len(begun.classes)

    every = torch.from_numpy(rows).to(train.labels.device)
    mean = train.features[every].double().mean(dim=0)
    deviation = train.features[every].double().std(dim=0, correction=0).clamp(min=1e-12)

    def some(numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        here = numbers.to(train.labels.device)
        return (train.features[here].double() - mean) / deviation, train.labels[here]

    begun.say(f"logistic regression: C is chosen on {len(judges):,} of {len(rows):,} training images")
    (seen, known), (unseen, truth) = some(torch.from_numpy(kept)), some(judges)
    tried = logistic.chosen(seen.float(), known, unseen.float(), truth, classes)  # twice as fast as in float64
    c, near, _ = max(tried, key=lambda one: (one[2]["top1"], -one[2]["loss"]))
    last = logistic.fit(*some(every), classes, c, begin=near)
    with torch.no_grad():
        weights = last.weights / deviation
        layer.weight.copy_(weights)
        layer.bias.copy_(last.biases - weights @ mean)
    final = logistic.measured(last.scores((held_out.features.double() - mean) / deviation), held_out.labels)
    notes = [f"C is the inverse of L2's strength, on standardised features; {c:.3g} was chosen"]
    if not last.converged:
        notes.append(f"the last fit did not converge in {logistic.ITERATIONS:,} iterations")
    if c in (tried[0][0], tried[-1][0]):
        notes.append(
            "the best C is at the edge of those that were tried: L2 hardly matters there, or features say nothing"
        )
    result = Probed(
        begun.folder.folder,
        "probe",
        final,
        len(held_out.labels),
        begun.recipe.eval_split,
        from_scratch,
        begun.recipe.labels_per_class,
        head.main,
        how=HOW,
        best={"C": c},
        tried=tuple({"C": value, **metrics} for value, _, metrics in tried),
        chosen_on=f"{len(judges):,} held-out training images",
        notes=tuple(notes),
    )
    keep(begun, begun.recipe, result, 0)
    return result
