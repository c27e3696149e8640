"""The encoder of any run folder, ready to be asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mae_pipe import runs
from mae_pipe.autoencoder import Encoder, build_encoder
from mae_pipe.classification import UNUSED, fill, read_weights
from mae_pipe.data.batch import Batch
from mae_pipe.errors import RecipeError, RunError
from mae_pipe.pixels import normalise
from mae_pipe.recipe import Data, Downstream, EncoderShape, Pretrain
from mae_pipe.tasks import view_of

MODEL = "model.safetensors"


@dataclass(frozen=True)
class Frozen:
    """An encoder in evaluation mode.

    Attributes:
        data: how its images are cut and normalised.
        fingerprint: of the weights.
    """

    encoder: Encoder
    shape: EncoderShape
    data: Data
    fingerprint: str
    seed: int

    def __call__(self, batch: Batch) -> Tensor:
        """[B, T + N, D] tokens."""
        tokens: Tensor = self.encoder(normalise(batch.pixels, self.data.mean, self.data.std))
        return tokens


def frozen_encoder(run: Path, changes: Mapping[str, Any], *, normed: bool) -> Frozen:
    """The encoder of a pretraining run, a probe or a finetuned run.

    Args:
        changes: keys of ``[data]`` that are other than the run's, such as the size.
        normed: whether the final norm is applied.
    """
    recipe = runs.read_recipe(run)
    if isinstance(recipe, Pretrain):
        weights, fingerprint = read_weights(run)
        shape = recipe.encoder
    elif isinstance(recipe, Downstream):
        weights, fingerprint, shape = _of_downstream(run)
    else:
        raise RunError(
            f"{run} is a {recipe.task} run, which has no encoder of images; give a pretrained or a tuned one"
        )
    if not normed:
        weights = {name: weight for name, weight in weights.items() if name not in UNUSED}
    elif UNUSED[0] not in weights:
        raise RunError(f"the encoder of {run} was tuned without its final norm; take features with --before-norm")
    data = recipe.data.model_copy(update=dict(changes))
    if any(side % patch for side, patch in zip(data.sides, shape.sides, strict=True)):
        raise RecipeError(f"--size {data.size} is no multiple of the encoder's patch {shape.patch}; choose another")
    with torch.random.fork_rng(devices=[]):
        shape = shape.model_copy(update={"mask_tokens": False})
        encoder = build_encoder(shape, data.sides, channels=data.channels, drop_path=0.0)
    if not normed:
        encoder.norm = nn.Identity()
    fill(encoder, weights, view_of(recipe.data, shape).grid)
    return Frozen(encoder.requires_grad_(False).eval(), shape, data, fingerprint, recipe.seed)


def _of_downstream(run: Path) -> tuple[dict[str, Tensor], str, EncoderShape]:
    """The encoder inside ``model.safetensors``, a fingerprint of the file, and the encoder's shape."""
    path = run / MODEL
    if not path.is_file():
        raise RunError(f"{run} has no {MODEL}; let mae-pipe finetune or probe come to its end")
    with path.open("rb") as content:
        fingerprint = hashlib.file_digest(content, "sha256").hexdigest()[:16]
    try:
        with safe_open(path, "pt") as file:
            shape = EncoderShape.model_validate_json(file.metadata()["encoder"])
            names = [name for name in file.keys() if name.startswith("encoder.")]  # noqa: SIM118 (no mapping)
            return {name.removeprefix("encoder."): file.get_tensor(name) for name in names}, fingerprint, shape
    except (SafetensorError, KeyError, TypeError, ValueError, json.JSONDecodeError) as error:
        raise RunError(f"{path} is damaged ({error}); run mae-pipe finetune or probe again") from error
