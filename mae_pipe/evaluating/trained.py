"""A downstream run's folder -> its model, ready to be measured, also at another size."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from mae_pipe import recipe, runs
from mae_pipe.catalog import Catalog
from mae_pipe.changes import pairs
from mae_pipe.classification import Classification
from mae_pipe.errors import RecipeError, RunError
from mae_pipe.positions import refitted
from mae_pipe.recipe import Changes, Downstream, EncoderShape, Pretrain
from mae_pipe.tasks import view_of

MODEL = "model.safetensors"
LARGE = 224  # pixels; larger images are shown whole, as the official evaluation does


@dataclass(frozen=True)
class Trained:
    """A finetuned or probed model.

    Attributes:
        recipe: of its run, with what was changed for measuring.
        task: encoder and head, in evaluation mode, float32.
        classes: their names, in the order of the head's outputs.
        step: at which it was saved.
    """

    recipe: Downstream
    task: Classification
    classes: list[str]
    step: int


def load(
    run: Path,
    catalog: Catalog,
    *,
    size: int | None = None,
    centre_share: float | None = None,
    changes: Changes = (),
) -> Trained:
    """The model in ``run/model.safetensors``: every weight and no other.

    Args:
        size: S, pixels; positions are interpolated as in the official code. Default: the run's.
        centre_share: of the centre view in the resized image's short side. Default: the run's; 1 above 224 pixels.
        changes: such as ``data.workers=2``; of ``data`` only.

    Raises:
        RunError: the folder is of another task, or holds no model, or one that its recipe does not describe.
        RecipeError: the size or a change does not fit.
    """
    found = runs.read_recipe(run)
    if not isinstance(found, Downstream):
        raise RunError(f"{run} is a {found.task} run; give the folder of a mae-pipe probe or mae-pipe finetune")
    path = run / MODEL
    if not path.is_file():
        raise RunError(
            f"{run} has no {MODEL}; it is written with the first checkpoint, so let the run go on (a head without "
            "weights, such as knn, has none: mae-pipe probe measures it)"
        )
    try:
        with safe_open(path, "pt") as file:
            told = {name: json.loads(text) for name, text in (file.metadata() or {}).items() if name != "format"}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        classes, step = [str(name) for name in told["classes"]], int(told["step"])
        was = recipe.parse(told["recipe"], str(path))
        assert isinstance(was, Downstream)
        encoder = EncoderShape.model_validate_json(json.dumps(told["encoder"]))
    except (SafetensorError, ValidationError, ValueError, KeyError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise RunError(f"{path} is no model of mae-pipe's ({first}); resume the run, which writes it again") from error
    chosen = _changed(was, size, centre_share, changes)
    for side, patch in zip(chosen.data.sides, encoder.sides, strict=True):
        if side % patch:
            raise RecipeError(
                f"--size {side} is no multiple of the encoder's patch {patch}; give {max(1, side // patch) * patch}"
            )
    shape = Pretrain(data=chosen.data.model_copy(update={"erase": 0.0}), encoder=encoder)  # of training alone
    old = view_of(was.data, encoder).grid
    task = Classification.from_recipe(chosen, shape, None, catalog, classes=len(classes))
    weights = refitted(weights, old, task.encoder.grid, first=encoder.class_tokens, under="encoder.")
    try:
        task.load_state_dict(weights)
    except RuntimeError as error:
        what = " ".join(str(error).split())[:300]
        raise RunError(f"{path} does not hold the weights of its recipe: {what}; resume the run") from error
    return Trained(chosen, task.eval(), classes, step)


def _changed(was: Downstream, size: int | None, centre_share: float | None, changes: Changes) -> Downstream:
    wanted = pairs(changes)
    other = next((name for name, _ in wanted if not name.startswith("data.")), None)
    if other is not None:
        raise RecipeError(f"a change of {other!r} would measure another model; only keys of data can be changed here")
    if size is not None:
        wanted.append(("data.size", size))
        if centre_share is None and size > LARGE:
            centre_share = 1.0
    if centre_share is not None:
        wanted.append(("data.centre_share", centre_share))
    return recipe.changed(was, dict(wanted))
