"""What a probe on features leaves behind: a run folder of its own, as every other probe."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mae_pipe.disk import write_whole, writing
from mae_pipe.downstream import MODEL, RESULT, Result
from mae_pipe.errors import RecipeError, RunError
from mae_pipe.features.folder import Features
from mae_pipe.features.heads import Split
from mae_pipe.journal import Journal
from mae_pipe.opening import Opened
from mae_pipe.outcome import read_object
from mae_pipe.recipe import Downstream
from mae_pipe.seeding import key, permutation
from mae_pipe.weights import entry_of


@dataclass(frozen=True)
class Probed(Result):
    """A result that was chosen among several.

    Attributes:
        how: "sweep" or "logistic".
        best: the values of the setting that was chosen.
        tried: a row for each setting: its values, and what it reached on ``chosen_on``.
        chosen_on: the images that decided, for people.
        notes: what a reader has to know, a sentence each.
    """

    how: str = ""
    best: dict[str, float] = field(default_factory=dict)
    tried: tuple[dict[str, float], ...] = ()
    chosen_on: str = ""
    notes: tuple[str, ...] = ()


def keep(begun: Opened, recipe: Downstream, result: Probed, steps: int) -> None:
    """Write the folder anew, in place of an earlier result of the same kind.

    Args:
        begun: whose task holds the best head.
        recipe: with the values that were chosen.
    """
    run = begun.folder

    folder = run.folder
    if folder.is_dir() and any(folder.iterdir()):
        if read_object(folder / "run.json").get("how") != result.how:
            raise RunError(f"{folder} holds something else than a result of --{result.how}; choose another --out")
        with writing(folder):
            shutil.rmtree(folder)
    run.begin(recipe, {**begun.about, "how": result.how}, resume="none")
    journal = Journal(folder)
    journal.write("eval", steps, split=result.split, images=result.images, **result.metrics)
    journal.close()
    told: dict[str, Any] = {
        "step": steps,
        "recipe": recipe.model_dump(mode="json"),
        "classes": begun.classes,
        "encoder": begun.pretrained.encoder.model_dump(mode="json"),
    }
    weights = begun.task.state_dict()
    run.save_weights(MODEL, map(entry_of, weights, weights.values()), told)
    write_whole(folder / RESULT, (json.dumps(result.to_json(), indent=1) + "\n").encode())


def alone(begun: Opened, how: str) -> None:
    """Refuse several processes, which compute features but do not train on them."""
    if begun.here.world > 1:
        pool = begun.task.head.pool or "tokens"
        raise RecipeError(
            f"--{how} is for one process; several may compute the features before: mae-pipe embed {begun.run} SHARDS "
            f"--pool {pool} --nproc {begun.here.world}"
        )


def on_device(device: torch.device, features: Features) -> Split:
    """All of a split in memory."""
    return Split(features.whole().to(device), features.labels.to(device))


def parted(rows: NDArray[np.int64], share: float, seed: int) -> tuple[NDArray[np.int64], torch.Tensor]:
    """The rows to train on, and a share of them, drawn by the seed, to choose on."""
    order, cut = permutation(key(seed, "aside"), len(rows)), round(share * len(rows))
    if not 0 < cut < len(rows):
        raise RecipeError(f"--held-out {share:g} of {len(rows)} images leaves none to choose on, or none to train on")
    return np.sort(rows[order[cut:]]), torch.from_numpy(np.sort(rows[order[:cut]]))
