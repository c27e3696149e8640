"""``mae-pipe probe --sweep``: linear probes of many learning rates, trained together on features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from mae_pipe.catalog import Catalog
from mae_pipe.data.order import Share
from mae_pipe.data.stream import Stream
from mae_pipe.errors import RecipeError
from mae_pipe.features import heads
from mae_pipe.features.heads import Heads, Setting, Split
from mae_pipe.features.results import Probed, alone, keep, on_device, parted
from mae_pipe.fitting import Plain
from mae_pipe.live import Live
from mae_pipe.opening import Opened, opened
from mae_pipe.optim import Plan
from mae_pipe.recipe import Downstream
from mae_pipe.stopping import stopping_at_once
from mae_pipe.watchdog import naming_a_lost_rank
from mae_pipe.wording import counted

STEPS = range(-6, 7)  # quarter decades about the recipe's rate
HOW = "sweep"


@naming_a_lost_rank()
@stopping_at_once()
def sweep(
    run: Path,
    recipe: Downstream,
    *,
    catalog: Catalog,
    rates: tuple[float, ...] = (),
    decays: tuple[float, ...] = (),
    aside: float = 0.0,
    views: int = 0,
    shards: Path | str | None = None,
    out: Path | None = None,
    from_scratch: bool = False,
    console: Console | None = None,
) -> Probed:
    """Train ``recipe``'s linear head with every rate and decay, and keep the best.

    Args:
        rates: values of ``optimizer.base_lr``; default: 13, from 1/32 of the recipe's to 32 times it.
        decays: of ``optimizer.weight_decay``; default: the recipe's.
        aside: share of the training images that chooses; the best is then trained on all of them. 0: the split that
            is measured chooses.
        views, shards, out, from_scratch: as for ``downstream``.
    """
    begun = opened(
        run, recipe, catalog=catalog, shards=shards, out=out, how=HOW, from_scratch=from_scratch, console=console
    )
    alone(begun, HOW)
    recipe, head = begun.recipe, begun.task.head
    heads.parts_of(head)
    rates = rates or tuple(float(f"{recipe.optimizer.base_lr * 10 ** (n / 4):.3g}") for n in STEPS)
    settings = [Setting(lr, decay) for decay in decays or (recipe.optimizer.weight_decay,) for lr in rates]
    train, held_out = (on_device(Plain(begun.task).device, features) for features in begun.recall(views))
    heads.check(head.cpu(), held_out.features[:64].cpu(), held_out.labels[:64].cpu())

    rows = begun.stream.rows if begun.stream.rows is not None else np.arange(len(train.labels))
    judge, judges = held_out, None
    if aside:
        judge, (rows, judges) = train, parted(rows, aside, recipe.seed)
    trained = _trained(begun, settings, train, rows)
    measured = heads.measure(trained, head, judge, judges)
    best = _best(measured, settings, head.main, recipe)
    if judges is None:
        final = measured[best]
        trained.put_into(head, best)
    else:  # once more, with all of the images
        trained = _trained(begun, [settings[best]], train, begun.stream.rows)
        final = heads.measure(trained, head, held_out)[0]
        trained.put_into(head, 0)
    recipe = recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update=vars(settings[best]))})
    result = Probed(
        begun.folder.folder,
        "probe",
        final,
        len(held_out.labels),
        recipe.eval_split,
        from_scratch,
        recipe.labels_per_class,
        head.main,
        how=HOW,
        best=dict(vars(settings[best])),
        tried=tuple({**vars(one), **metrics} for one, metrics in zip(settings, measured, strict=True)),
        chosen_on=f"{len(judges):,} held-out training images" if judges is not None else repr(recipe.eval_split),
        notes=_notes(settings, settings[best], recipe.eval_split, aside=judges is not None),
    )
    keep(begun, recipe, result, Plan.of(recipe, begun.stream.images, 1).steps)
    return result


def _trained(begun: Opened, settings: list[Setting], split: Split, rows: NDArray[np.int64] | None) -> Heads:
    """The heads of these settings, trained on some rows; None: on all."""
    recipe = begun.recipe
    share = Share(micro_batch=Plan.of(recipe, 1, 1).micro_batch)
    stream = Stream(begun.stream.shelf, recipe.data, seed=recipe.seed, share=share, rows=rows)
    plan = Plan.of(recipe, stream.images, 1)
    with Live("sweep", plan.steps, console=begun.console) as live:

        def told(step: int, loss: float) -> None:
            live.tell(step, f"epoch {plan.epoch(step):.1f}  least loss {loss:.4f}  of {counted(len(settings), 'head')}")

        return heads.train(begun.task.head, settings, split, stream, recipe, told)


def _best(measured: list[dict[str, float]], settings: list[Setting], main: str, recipe: Downstream) -> int:
    """The number of the setting with the highest score; of equals that with the lowest rate."""
    whole = [number for number, metrics in enumerate(measured) if np.isfinite(metrics["loss"])]
    if not whole:
        raise RecipeError(
            f"no rate of the sweep gave a finite loss with optimizer.name {recipe.optimizer.name!r}; give lower --rates"
        )
    return max(whole, key=lambda number: (measured[number][main], -settings[number].base_lr))


def _notes(settings: list[Setting], best: Setting, split: str, *, aside: bool) -> tuple[str, ...]:
    """What a reader has to know."""
    notes = []
    rates = sorted({setting.base_lr for setting in settings})
    if len(rates) > 1 and best.base_lr in (rates[0], rates[-1]):
        which, side = ("lowest", "lower") if best.base_lr == rates[0] else ("highest", "higher")
        notes.append(f"the best rate is the {which} that was tried; give --rates with {side} ones")
    if not aside:
        notes.append(
            f"the rate was chosen on {split!r}, where it is measured, as papers do; --held-out 0.1 chooses it on a "
            "part of the training images"
        )
    return tuple(notes)
