"""``mae-pipe embed``: the features of any images, for the probes here or for other programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from mae_pipe import launch
from mae_pipe.catalog import Catalog
from mae_pipe.data.arrange import as_recorded
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.order import Share
from mae_pipe.data.shelf import Shelf
from mae_pipe.data.stream import Stream
from mae_pipe.direct import shards_of
from mae_pipe.errors import RecipeError
from mae_pipe.features import identity as identities
from mae_pipe.features.encoders import frozen_encoder
from mae_pipe.features.extract import BATCH, Progress, check_kind, extract, per_shard
from mae_pipe.features.identity import Dtype, Format, Identity, Kind
from mae_pipe.features.parquet import check_parquet
from mae_pipe.recipe import Data, EncoderShape
from mae_pipe.stopping import stopping_at_once
from mae_pipe.watchdog import naming_a_lost_rank

CACHE = "features"  # the folder of a run that keeps them


@naming_a_lost_rank()
@stopping_at_once()
def embed(
    run: Path,
    source: Path | str,
    *,
    catalog: Catalog,
    out: Path | None = None,
    kind: Kind = "mean",
    normed: bool = True,
    dtype: Dtype = "float32",
    format: Format = "safetensors",
    splits: tuple[str, ...] = (),
    size: int | None = None,
    views: int = 0,
    workers: int | None = None,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[str], Progress] = lambda split: lambda done, total: None,
) -> dict[Path, identities.Manifest]:
    """A folder of features for each split of the images; every process of a job calls it.

    Args:
        run: whose encoder it is; a pretraining run, or one that was tuned.
        out: a folder for each split is made in it; default: in the run's own, under names that probes look for.
        splits: default: all of ``source``.
    """
    changes = {"size": size} if size else {}
    changes |= {} if workers is None else {"workers": workers}
    frozen = frozen_encoder(run, changes, normed=normed)
    check_kind(kind, frozen.shape.class_tokens)
    shards = shards_of(source, catalog)
    here = launch.join()
    device = torch.device("cuda", here.local_rank) if torch.cuda.is_available() else torch.device("cpu")
    frozen.encoder.to(device)
    made = {}
    for split in splits or tuple(Manifest.load(shards).splits):
        stream, identity = described(
            Shelf(shards, split, catalog),
            frozen.data,
            encoder=frozen.fingerprint,
            shape=frozen.shape,
            kind=kind,
            normed=normed,
            seed=frozen.seed,
            views=views,
            dtype=dtype,
            format=format,
        )
        folder = out / split if out else run / CACHE / identity.folder
        say(f"{split}: {stream.images:,} images, {in_words(identity)}")
        made[folder] = extract(
            folder,
            identity,
            stream,
            frozen,
            class_tokens=frozen.shape.class_tokens,
            device=device,
            progress=progress(split),
        )
        stream.close()
    return made


def described(
    shelf: Shelf,
    data: Data,
    *,
    encoder: str,
    shape: EncoderShape,
    kind: Kind,
    normed: bool,
    seed: int,
    views: int,
    dtype: Dtype = "float32",
    format: Format = "safetensors",
) -> tuple[Stream, Identity]:
    """A split's images as the encoder will see them, and what their features are then of."""
    if views and data.repeats > 1:
        raise RecipeError(f"data.repeats {data.repeats} shows an image several times in a row; set data.repeats=1")
    labelling: Literal["class", "multi"] = "multi" if shelf.manifest.labelling == "multi" else "class"
    share = Share(micro_batch=BATCH)
    stream = Stream(shelf, data, seed=seed, share=share, training=views > 0, labels=labelling)
    number = shape.class_tokens + view_patches(data, shape) if kind == "tokens" else 1
    row = number * shape.width * (2 if dtype == "float16" else 4) * max(1, views)
    view = identities.view_of_centre(data)
    if views:
        view = identities.view_at_random(data, seed=seed, order=as_recorded(stream.order))
    identity = Identity(
        encoder=encoder,
        shape=shape.model_dump(mode="json", exclude={"mask_tokens", "drop_path", "dropout"}),  # of no effect here
        kind=kind,
        normed=normed,
        view=view,
        views=views,
        images=shelf.split.index.sha256[:16],
        split=shelf.name,
        classes=shelf.manifest.classes,
        labelling=labelling,
        dtype=dtype,
        per_shard=per_shard(row),
        format=format,
    )
    if format == "parquet":
        check_parquet(identity)
    return stream, identity


def view_patches(data: Data, shape: EncoderShape) -> int:
    """N."""
    return (data.height // shape.sides[0]) * (data.width // shape.sides[1])


def in_words(identity: Identity) -> str:
    """What is kept of an image, for people."""
    kinds = {"token": "the class token", "mean": "the mean of the patch tokens", "tokens": "all tokens"}
    norm = "" if identity.normed else " before the final norm"
    views = f"{identity.views} random views" if identity.views else "the centre view"
    return f"{kinds[identity.kind]}{norm} of {views}"
