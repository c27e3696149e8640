"""``mae-pipe probe`` and ``mae-pipe finetune``: what a pretrained encoder is good for, measured."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from torch import Tensor

from mae_pipe import segmented
from mae_pipe.catalog import Catalog
from mae_pipe.checkpoints import Archive
from mae_pipe.classification import Classification
from mae_pipe.data.stream import Stream
from mae_pipe.disk import write_whole
from mae_pipe.engine import Engine
from mae_pipe.engine.state import AVERAGE, WEIGHT
from mae_pipe.errors import RunError
from mae_pipe.fitting import Plain, measured, prepare
from mae_pipe.journal import Journal
from mae_pipe.live import Live
from mae_pipe.means import agree_on_buffers
from mae_pipe.opening import opened
from mae_pipe.optim import Groups, Plan, layer_of, no_decay_finetuning, parameter_groups
from mae_pipe.recipe import Downstream
from mae_pipe.runs import Run
from mae_pipe.stopping import stopping_at_once
from mae_pipe.trainer import train
from mae_pipe.watchdog import naming_a_lost_rank
from mae_pipe.weights import entry_of

MODEL = "model.safetensors"
RESULT = "result.json"


@dataclass(frozen=True)
class Result:
    """What one downstream run reached at its end.

    Attributes:
        metrics: "loss" and the head's own, such as "top1" and "top5" in [0, 1]: means over ``images`` images.
    """

    folder: Path
    task: str
    metrics: dict[str, float]
    images: int
    split: str
    from_scratch: bool
    labels_per_class: int | None
    main: str = "top1"
    ema: float = 0.0  # decay of the average of the weights that was measured; 0: the weights themselves

    def to_json(self) -> dict[str, Any]:
        """Flat, as it stands in result.json."""
        values = {name: value for name, value in vars(self).items() if name not in ("folder", "metrics")}
        return {**self.metrics, **values}

    @classmethod
    def read(cls, folder: Path) -> Result:
        """Of a run that has come to its end.

        Raises:
            RunError: it has not.
        """
        try:
            values = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{folder} has no result yet ({error}); let the run go on") from error
        own = {name: values.pop(name) for name in [f.name for f in fields(cls)] if name in values}
        return cls(folder=folder, metrics=values, **own)


@naming_a_lost_rank()
@stopping_at_once()
def downstream(
    run: Path,
    recipe: Downstream,
    *,
    catalog: Catalog,
    shards: Path | str | None = None,
    out: Path | None = None,
    from_scratch: bool = False,
    resume: str = "auto",
    cached: bool = False,
    views: int = 0,
    console: Console | None = None,
) -> Result:
    """Train ``recipe``'s head on the encoder of the pretraining run ``run``, and measure it.

    Every process of a job calls it; alone it needs no launcher.

    Args:
        run: a run folder; from scratch also the name or file of a pretraining recipe, and then ``shards`` and ``out``.
        shards: labelled shards; default: those that ``run`` was pretrained on.
        out: run folder, made or gone on with; default: ``folder_of``.
        from_scratch: do not load the pretrained weights, for comparison.
        cached: a probe learns from features, computed once and kept in ``run``, or in ``out`` where that is a recipe.
        views: with ``cached``, random crops of every training image; 0: its centre view.
    """
    begun = opened(
        run,
        recipe,
        catalog=catalog,
        shards=shards,
        out=out,
        how="cached" if cached else "",
        from_scratch=from_scratch,
        console=console,
    )
    here, recipe, task, stream, held_out = begun.here, begun.recipe, begun.task, begun.stream, begun.held_out
    folder, groups, about = begun.folder, groups_of(task, recipe), begun.about
    plan = Plan.of(recipe, stream.images, here.world)
    if cached:
        begun.recall(views)
        about |= {"how": "cached", "features": {"views": views}}
    prepare(task, recipe, groups, stream, folder)
    checkpoint = folder.begin(recipe, about, resume=resume)
    if not groups:
        return _untrained(task, recipe, folder, stream, held_out, from_scratch=from_scratch)

    # What is frozen is saved as it was read: inside the engine it may be rounded to bfloat16.
    tuned = {name for name, parameter in task.encoder.named_parameters() if parameter.requires_grad}
    untouched = {f"encoder.{n}": w.clone() for n, w in task.encoder.state_dict().items() if n not in tuned}
    trained = sum(p.numel() for g in groups for p in g["params"])
    folder.make_room(trained, keep=recipe.saving.keep_last, averaged=recipe.ema > 0)
    engine = Engine(task, groups, recipe, micro_batch=plan.micro_batch, average=recipe.ema)
    start = 0 if checkpoint is None else folder.restore(engine, checkpoint)
    journal = Journal(folder.folder, active=here.rank == 0)
    journal.cut(start)

    def measure(step: int) -> dict[str, float]:
        agree_on_buffers(task.head)
        with engine.averaged():
            metrics = measured(engine, held_out, task.head, recipe.sliding)
            if task.head.labels == "map" and not cached:  # features that are kept have no image
                picture = folder.folder / "pictures" / f"segmentation-{step:07d}.png"
                segmented.draw(engine, held_out, begun.classes, picture, active=here.rank == 0)
        journal.write("eval", step, split=recipe.eval_split, images=held_out.images, **metrics)
        return metrics

    told = {"recipe": recipe, "classes": begun.classes, "encoder": begun.pretrained.encoder}
    saver = folder.saver(engine, recipe, plan, partial(publish, folder, told, untouched))

    def save(step: int) -> None:
        agree_on_buffers(task.head)
        saver.save(step)

    def after_step(step: int) -> None:
        if step % plan.steps_of(recipe.eval_every_epochs) == 0 and step < plan.steps:
            live.measured(task.head.main, measure(step))

    with Live(recipe.task, plan.steps, start=start, console=console, active=here.rank == 0) as live:
        live.say(stream.about)
        if task.left_out:
            live.say(f"the head norms the mean itself; left out of the encoder: {', '.join(task.left_out)}")
        train(
            engine,
            stream,
            plan,
            journal=journal,
            live=live,
            seed=recipe.seed,
            start=start,
            log_every=recipe.logging.every_steps,
            save_every=plan.steps_of(recipe.saving.every_epochs),
            save=save,
            finish=saver.finish,
            faults=recipe.faults,
            restore=lambda: folder.go_back(engine, saver),
            key_of=stream.index.key,
            after_step=after_step,
        )
    # Not in the loop: a run that was stopped after its last step still gets its result.
    result = _result(folder, recipe, held_out, measure(plan.steps), task, from_scratch=from_scratch)
    journal.close()
    engine.close()
    stream.close()
    held_out.close()
    return result


def publish(folder: Run, told: dict[str, Any], untouched: dict[str, Tensor], archive: Archive) -> None:
    """``model.safetensors``, encoder and head: the average if one is kept; ``untouched`` weights as they were read."""
    metadata: dict[str, Any] = {"step": archive.record.step}
    metadata |= {n: v.model_dump(mode="json") if isinstance(v, BaseModel) else v for n, v in told.items()}
    kind = AVERAGE if AVERAGE in archive.kinds else WEIGHT
    entries = [entry for entry in archive.entries(kind) if entry.name not in untouched]
    folder.save_weights(MODEL, [*entries, *map(entry_of, untouched, untouched.values())], metadata)


def _result(
    folder: Run,
    recipe: Downstream,
    held_out: Stream,
    metrics: dict[str, float],
    task: Classification,
    *,
    from_scratch: bool,
) -> Result:
    """Written to result.json by rank 0."""
    result = Result(
        folder.folder,
        recipe.task,
        metrics,
        held_out.images,
        recipe.eval_split,
        from_scratch,
        recipe.labels_per_class,
        task.head.main,
        recipe.ema,
    )
    if folder.rank == 0:
        write_whole(folder.folder / RESULT, (json.dumps(result.to_json(), indent=1) + "\n").encode())
    return result


def _untrained(
    task: Classification, recipe: Downstream, folder: Run, stream: Stream, held_out: Stream, *, from_scratch: bool
) -> Result:
    """A head without parameters: it is fitted and measured, and no step is made."""
    model = Plain(task)
    journal = Journal(folder.folder, active=folder.rank == 0)
    journal.cut(0)
    metrics = measured(model, held_out, task.head, recipe.sliding)
    journal.write("eval", 0, split=recipe.eval_split, images=held_out.images, **metrics)
    journal.close()
    stream.close()
    held_out.close()
    return _result(folder, recipe, held_out, metrics, task, from_scratch=from_scratch)


def groups_of(task: Classification, recipe: Downstream) -> Groups:
    """Parameter groups with layer decay: the head learns fastest, the patch embedding slowest."""
    depth, decay = len(task.encoder.blocks), recipe.optimizer.layer_decay

    def lr_scale(name: str) -> float:
        inside = name.removeprefix("encoder.")
        return 1.0 if inside == name else decay ** (depth + 1 - layer_of(inside, depth))

    return parameter_groups(
        task.named_parameters(),
        weight_decay=recipe.optimizer.weight_decay,
        no_decay=lambda name, parameter: no_decay_finetuning(name.removeprefix("encoder."), parameter),
        lr_scale=lr_scale,
    )
