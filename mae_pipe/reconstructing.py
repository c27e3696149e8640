"""``mae-pipe reconstruct``: what a pretrained run makes of images, drawn; and the pictures of a run as it goes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mae_pipe import pictures, runs
from mae_pipe.building import build
from mae_pipe.catalog import Catalog
from mae_pipe.data import decode
from mae_pipe.data.admit import Wishes, admit
from mae_pipe.data.batch import Batch
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.order import Share
from mae_pipe.data.refusal import Refusal
from mae_pipe.data.sample import Stored
from mae_pipe.data.shelf import Shelf
from mae_pipe.data.stream import Stream
from mae_pipe.direct import shards_of
from mae_pipe.disk import going_on_without
from mae_pipe.errors import DataError, RunError
from mae_pipe.method import Method, Reconstruction
from mae_pipe.pixels import pixels_of
from mae_pipe.recipe import Data, Pretrain, parse
from mae_pipe.tasks import view_of

if TYPE_CHECKING:
    from mae_pipe.engine import Engine

WEIGHTS = "model.safetensors"
COUNT = 8  # images of a run's pictures
AT_ONCE = 16  # images in the model together


def reconstruct(
    run: Path,
    images: Sequence[Path],
    out: Path,
    *,
    catalog: Catalog,
    shards: Path | str | None = None,
    split: str = "val",
    count: int = COUNT,
    seed: int | None = None,
    ratio: float | None = None,
    mask: str | None = None,
) -> Path:
    """Draw what ``run`` predicts for image files, and for ``count`` images of ``shards``; returns ``out``.

    ``seed``, ``ratio`` and ``mask`` take the place of the recipe's; they change what is hidden, no weight.
    """
    recipe, task, step = load(run, catalog, seed=seed, ratio=ratio, mask=mask)
    batch, names = given(images, recipe.data) if images else (None, [])
    if shards is not None:
        stored, keys = fixed(shards, split, recipe.data, count, catalog)
        batch = stored if batch is None else _joined(batch, stored)
        names += keys
    if batch is None:
        raise DataError("there is nothing to reconstruct; give image files, or a folder of shards with --shards")
    strips: list[pictures.Strip] = []
    for start in range(0, len(names), AT_ONCE):
        part = _part(batch, slice(start, start + AT_ONCE))
        made = task.reconstruct(part)
        strips += strips_of(made, recipe, names[start : start + AT_ONCE])
    title = f"{run.resolve().name}, step {step:,}"
    pictures.save(pictures.draw(strips, title=title, footer=caption(recipe, made)), out)
    return out


def load(
    run: Path,
    catalog: Catalog,
    *,
    seed: int | None = None,
    ratio: float | None = None,
    mask: str | None = None,
) -> tuple[Pretrain, Method, int]:
    """The recipe, the whole method with its newest weights, and their step."""
    recipe = runs.read_recipe(run)
    if not isinstance(recipe, Pretrain):
        raise RunError(f"{run} is a {recipe.task} run, which predicts no patches; give a run of mae-pipe pretrain")
    values: dict[str, Any] = recipe.model_dump(mode="json")
    if seed is not None:
        values["seed"] = seed
    if ratio is not None:
        values["mask"]["ratio"] = ratio
    if mask is not None and mask != recipe.mask.name:
        values["mask"] |= {"name": mask, "options": {}}
    chosen = parse(values, str(run / "recipe.json"))
    assert isinstance(chosen, Pretrain)
    task = build(chosen, catalog)
    if not task.reconstructs:
        raise RunError(
            f"{run} was pretrained by {recipe.method.name!r}, which predicts no patches; give a run of mae or beit"
        )
    return chosen, task.eval(), fill(task, run)


def fill(task: Method, run: Path) -> int:
    """Put a run's newest weights into its method; their step."""
    path = run / WEIGHTS
    if not path.is_file():
        raise RunError(f"{run} has no {WEIGHTS} yet; it is written with the first checkpoint, so let the run go on")
    try:
        with safe_open(path, "pt") as file:
            step = int(json.loads((file.metadata() or {}).get("step", "0")))
            weights: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        task.load_state_dict(weights)
    except (SafetensorError, RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise RunError(f"{path} does not hold the weights of this run's recipe: {first}; resume the run") from error
    return step


def given(paths: Sequence[Path], data: Data) -> tuple[Batch, list[str]]:
    """Image files as evaluation sees them, and their names."""
    pixels = []
    for path in paths:
        try:
            admitted = admit(path.read_bytes(), Wishes(channels=data.channels))
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}; give the path of an image") from error
        except Refusal as refusal:
            raise DataError(f"{path} cannot be used: {refusal}; give another image") from refusal
        stored = Stored(admitted.image, admitted.encoding, admitted.width, admitted.height)
        picture = decode.picture(stored, data.channels)
        seen = decode.centred(picture, data.sides, data.centre_share, decode.FILTERS[data.interpolation])
        pixels.append(seen.transpose(2, 0, 1))
    positions = torch.arange(len(pixels))
    nowhere = torch.full_like(positions, -1)
    return Batch(torch.from_numpy(np.stack(pixels)), nowhere, nowhere, positions), [path.name for path in paths]


def fixed(shards: Path | str, split: str, data: Data, count: int, catalog: Catalog) -> tuple[Batch, list[str]]:
    """``count`` images spread evenly over a split, always the same ones, and their keys."""
    shelf = Shelf(shards_of(shards, catalog), split, catalog)
    rows = shelf.spread(count)
    calm = data.model_copy(update={"workers": 0})
    stream = Stream(shelf, calm, seed=0, share=Share(micro_batch=len(rows)), training=False, rows=rows)
    try:
        return next(stream.once()), [shelf.index.key(int(row)) for row in rows]
    finally:
        stream.close()


def _part(batch: Batch, images: slice) -> Batch:
    return batch.each(lambda tensor: tensor[images])


def _joined(one: Batch, other: Batch) -> Batch:
    """Both, each image with a position of its own, so that no two share a mask."""
    pixels, labels, numbers, positions = (torch.cat(p) for p in zip(one.tensors, other.tensors, strict=True))
    return Batch(pixels, labels, numbers, torch.arange(len(positions)))


def strips_of(made: Reconstruction, recipe: Pretrain, names: Sequence[str] = ()) -> list[pictures.Strip]:
    """Tensors -> strips of pixels, on the CPU."""
    view = view_of(recipe.data, recipe.encoder)
    cells = made.mask.as_map().reshape(-1, view.grid.rows, view.grid.cols)  # [B, rows, cols]
    hidden = cells.repeat_interleave(view.patch[0], 1).repeat_interleave(view.patch[1], 2).cpu().numpy()  # [B, H, W]
    inputs, predicted = (
        visible_channels(pixels_of(part, view.mean, view.std)).permute(0, 2, 3, 1).cpu().numpy()  # [B, H, W, 3]
        for part in (made.images, made.picture)
    )
    named = list(names) or [""] * len(inputs)
    return [
        pictures.Strip(image, pictures.hide(image, map_), guess, np.where(map_[..., None], guess, image), name)
        for image, map_, guess, name in zip(inputs, hidden, predicted, named, strict=True)
    ]


def caption(recipe: Pretrain, made: Reconstruction) -> str:
    """What was hidden, and how the prediction became a picture."""
    count = made.mask.order.shape[1]
    hidden = count - made.mask.visible_count
    said = f"{hidden} of {count} patches hidden ({recipe.mask.name}); target {recipe.target.name}"
    said += f": {made.caption}" if made.caption else ""
    return f"{said}; visible patches cost no loss, so what is predicted there means nothing"


class RunPictures:
    """Draws the same images into ``RUN/pictures`` at the start, every so often and at the end.

    Args:
        recipe: of the run.
        every: steps between pictures.
        last: the run's last step.
        active: whether this rank writes; all ranks call, since at ZeRO 3 a model's weights lie on all.
    """

    def __init__(
        self, run: Path, batch: Batch, recipe: Pretrain, *, every: int, last: int, active: bool = True
    ) -> None:
        self.folder, self.batch, self.recipe = run / "pictures", batch, recipe
        self.every, self.last, self.active = every, last, active

    @classmethod
    def of(
        cls, run: Path, shards: Path, recipe: Pretrain, catalog: Catalog, *, every: int, last: int, active: bool = True
    ) -> RunPictures:
        """Of images of the split ``val``, or of the first split where there is none."""
        splits = Manifest.load(shards).splits
        split = "val" if "val" in splits and splits["val"].images else next(iter(splits))
        batch, _ = fixed(shards, split, recipe.data, COUNT, catalog)
        return cls(run, batch, recipe, every=every, last=last, active=active)

    def __call__(self, step: int, engine: Engine) -> None:
        """Draw, if ``step`` is one of them; leaves the engine in training mode."""
        if step not in (0, self.last) and step % self.every:
            return
        engine.train(False)
        with torch.no_grad():
            made = engine(self.batch.to(engine.device), mode="reconstruct")
        engine.train()
        if self.active:
            page = pictures.draw(
                strips_of(made, self.recipe), title=f"step {step:,}", footer=caption(self.recipe, made)
            )
            path = self.folder / f"step-{step:07d}.png"
            with going_on_without(str(path)):
                pictures.save(page, path)


def visible_channels(pixels: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, 3, H, W]: grey thrice, or the first three channels."""
    return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels[:, :3]
