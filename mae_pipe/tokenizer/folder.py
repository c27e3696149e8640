"""A tokenizer's folder: ``tokenizer.json`` says what it is, ``tokenizer.safetensors`` holds its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from torch import Tensor, nn
from torch.nn import functional as F

from mae_pipe.disk import write_whole
from mae_pipe.errors import DataError
from mae_pipe.tables import Positive, Table, TokenizerShape
from mae_pipe.tokenizer.foreign import DalleVae, StridedVae
from mae_pipe.tokenizer.network import DiscreteVae
from mae_pipe.tokenizer.vqkd import VqKd
from mae_pipe.weights import to_safetensors

ABOUT, WEIGHTS = "tokenizer.json", "tokenizer.safetensors"
VERSION = 1


class About(Table):
    """What ``tokenizer.json`` says."""

    version: int = VERSION
    layout: Literal["mae-pipe", "dall-e", "beit", "dalle-pytorch", "vq-kd"]  # whose network it is
    codebook: Positive
    downsampling: Positive  # pixels in a row and in a column that become one token
    channels: Positive = 3
    trained_at: tuple[Positive, Positive] | None = None  # height and width of the images that it learned from
    shape: TokenizerShape | None = None  # of mae-pipe's own
    sizes: dict[str, int] = Field(default_factory=dict)  # of another layout
    decodes: bool = True  # tokens can be made pictures again
    source: str = ""  # the file that it was imported from, or the run


class Tokenizer(nn.Module):
    """A frozen tokenizer: images in, a map of tokens out.

    Attributes:
        about: what the folder says.
        hash: of its weights and of what it says, 64 hexadecimal digits.
    """

    def __init__(self, about: About, network: nn.Module, digest: str) -> None:
        super().__init__()
        self.about, self.network, self.hash = about, network.eval().requires_grad_(False), digest

    @property
    def codebook(self) -> int:
        """How many tokens there are."""
        return self.about.codebook

    @torch.no_grad()
    def forward(self, colours: Tensor, rows: int, cols: int) -> Tensor:
        """[B, C, H, W] in [0, 1] -> [B, rows, cols] int64.

        The images are brought to the size at which they have so many tokens: 112 pixels for 14 and a
        downsampling of 8. Computed in float32, so that tokens do not depend on a model's precision.
        """
        size = rows * self.about.downsampling, cols * self.about.downsampling
        with torch.autocast(colours.device.type, enabled=False):
            colours = colours.float()
            if colours.shape[-2:] != size:
                colours = F.interpolate(colours, size, mode="bicubic", antialias=True).clamp(0, 1)
            tokens: Tensor = self.network.tokens(colours)  # type: ignore[operator]
        return tokens

    @torch.no_grad()
    def picture(self, tokens: Tensor) -> Tensor:
        """[B, h, w] int64 -> [B, C, H, W] in [0, 1]. Only where ``about.decodes``."""
        colours: Tensor = self.network.picture(tokens)  # type: ignore[operator]
        return colours

    def train(self, mode: bool = True) -> Tokenizer:
        """Stays in evaluation mode."""
        return super().train(False)


def network_of(about: About) -> nn.Module:
    """A network without its weights."""
    if about.layout == "mae-pipe":
        return DiscreteVae(about.shape or TokenizerShape(), about.channels)
    networks: dict[str, type[nn.Module]] = {
        "dall-e": DalleVae,
        "beit": StridedVae,
        "dalle-pytorch": StridedVae,
        "vq-kd": VqKd,
    }
    return networks[about.layout](**about.sizes)


def save_tokenizer(folder: Path, about: About, weights: Mapping[str, Tensor]) -> str:
    """Write both files; returns the tokenizer's hash."""
    said = (json.dumps(about.model_dump(mode="json"), indent=1) + "\n").encode()
    held = to_safetensors({name: tensor.contiguous() for name, tensor in weights.items()}, {})
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / WEIGHTS, held)
    write_whole(folder / ABOUT, said)
    return _hash(about, held)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """A tokenizer from its folder.

    Raises:
        DataError: the folder holds none, or is damaged.
    """
    folder = Path(folder)
    advice = "give a folder of mae-pipe tokenizer train or import"
    if not (folder / ABOUT).is_file() or not (folder / WEIGHTS).is_file():
        raise DataError(f"{folder} holds no tokenizer ({ABOUT} and {WEIGHTS}); {advice}")
    try:
        about = About.model_validate_json((folder / ABOUT).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(f"{folder / ABOUT} is damaged: {where}: {first['msg']}; {advice}") from error
    if about.version > VERSION:
        raise DataError(
            f"{folder / ABOUT} has version {about.version}, this mae-pipe reads up to {VERSION}; upgrade it"
        )
    content = (folder / WEIGHTS).read_bytes()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # real also where a model is planned on shapes alone
        network = network_of(about)
    try:
        network.load_state_dict(from_safetensors(content))
    except (SafetensorError, RuntimeError) as error:
        raise DataError(f"{folder / WEIGHTS} does not fit {ABOUT}: {str(error).splitlines()[0]}; {advice}") from error
    return Tokenizer(about, network, _hash(about, content))


def _hash(about: About, weights: bytes) -> str:
    said: dict[str, Any] = about.model_dump(mode="json")
    del said["source"]  # the same tokenizer from another place is the same
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode() + weights).hexdigest()
