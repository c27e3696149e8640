"""What a folder of features is of: all that decides its numbers, and the name that follows from it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mae_pipe.errors import RunError
from mae_pipe.recipe import Data

NAME = "manifest.json"
VERSION = 1
Kind = Literal["token", "mean", "tokens"]
Dtype = Literal["float32", "float16"]
Format = Literal["safetensors", "parquet"]
CENTRE = ("size", "interpolation", "centre_share", "mean", "std")  # the keys of [data] that make a centre view
NO_PIXELS = {  # those that change no pixel of a view at a given position
    "global_batch", "micro_batch", "workers", "worker_kind", "order", "window", "lanes", "repeats", "erase",
    "centre_share",
}  # fmt: skip


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Identity(_Part):
    """All that decides the numbers of a folder of features; another value of any key is another folder.

    Attributes:
        encoder: a fingerprint of the weights.
        shape: of the encoder, as its recipe has it.
        kind: the mean of the class tokens, the mean of the patch tokens, or all tokens.
        normed: after the encoder's final norm, or before it.
        view: what is seen of an image, keys of ``[data]``; with the seed and the order where crops are random.
        views: random ones of every image; 0: its centre.
        images: the index of the split, which holds the checksum and the labels of every image.
        classes: names by label; ``labelling`` as in a manifest of shards.
        per_shard: images in a file.
    """

    encoder: str
    shape: dict[str, Any]
    kind: Kind
    normed: bool
    view: dict[str, Any]
    views: Annotated[int, Field(ge=0)]
    images: str
    split: str
    classes: list[str]
    labelling: Literal["class", "multi"]
    dtype: Dtype
    per_shard: Annotated[int, Field(ge=1)]
    format: Format = "safetensors"

    @property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def folder(self) -> str:
        """The name of its folder, such as train-mean-0123456789abcdef."""
        return f"{self.split}-{self.kind}-{self.hash}"

    def differences(self, other: Identity) -> str:
        """What is not the same in ``other``, for a sentence."""
        mine, theirs = self.model_dump(mode="json"), other.model_dump(mode="json")
        return ", ".join(name for name in mine if mine[name] != theirs[name])


class Shard(_Part):
    """One file of features."""

    name: Annotated[str, Field(pattern=r"^features-[0-9]+\.(safetensors|parquet)$")]
    images: int
    bytes: int
    sha256: str


class Manifest(_Part):
    """A whole folder of features."""

    version: int
    created_by: str
    count: int  # images
    width: int  # D
    identity: Identity
    shards: list[Shard]

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read and check ``folder/manifest.json``."""
        try:
            manifest = cls.model_validate_json((folder / NAME).read_bytes())
        except OSError as error:
            raise RunError(
                f"{folder} holds no features ({NAME} cannot be read); make them with: mae-pipe embed"
            ) from error
        except ValidationError as error:
            what = error.errors()[0]["msg"]
            raise RunError(
                f"{folder / NAME} is not a manifest of features ({what}); delete {folder}, and make them again"
            ) from error
        if manifest.version > VERSION:
            raise RunError(f"{folder} has features of version {manifest.version}, this mae-pipe reads up to {VERSION}")
        return manifest


def view_of_centre(data: Data) -> dict[str, Any]:
    """The keys that decide evaluation's view of an image."""
    return {name: value for name, value in data.model_dump(mode="json").items() if name in CENTRE}


def view_at_random(data: Data, *, seed: int, order: Any) -> dict[str, Any]:
    """The keys that decide a random view of an image at its place in the stream."""
    kept = {name: value for name, value in data.model_dump(mode="json").items() if name not in NO_PIXELS}
    return {**kept, "seed": seed, "order": order}
