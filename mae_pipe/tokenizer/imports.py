"""Tokenizers from elsewhere: a local file's tensors, and nothing else of it, become a tokenizer's folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae_pipe.errors import DataError
from mae_pipe.foreign_files import ADVICE, read_foreign
from mae_pipe.tokenizer import vqkd
from mae_pipe.tokenizer.folder import About, network_of, save_tokenizer

STAND_INS = (  # the classes that OpenAI's encoder.pkl and decoder.pkl name; each is read as an empty box
    "dall_e.decoder.Decoder",
    "dall_e.decoder.DecoderBlock",
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.upsampling.Upsample",
)
KNOWN = "OpenAI's dVAE encoder, the discrete VAE of BEiT or of DALLE-pytorch, or BEiT v2's VQ-KD"


class _Box:
    """Stands for a module in a pickle: it keeps what the file says of it and does nothing."""

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})

    def part(self, name: str) -> dict[str, Any]:
        """One of a module's own dictionaries, such as its parameters."""
        found = vars(self).get(name)
        return found if isinstance(found, dict) else {}


def import_tokenizer(file: Path, out: Path, *, decoder: Path | None = None) -> tuple[About, str]:
    """Read ``file``, write the folder ``out``; returns what it is and its hash.

    Args:
        decoder: OpenAI's, which lies in a file of its own; without it, tokens cannot be drawn.

    Raises:
        DataError: the file is missing, damaged, holds more than tensors, or is of no layout that is known.
    """
    if out.exists():
        raise DataError(f"{out} exists already; choose another --out")
    weights = _tensors(file)
    try:
        if "blocks.output.conv.w" in weights:
            about, weights = _dalle(weights, file, decoder)
        elif "quantize.embedding.weight" in weights:
            about, weights = _vqkd(weights, file)
        elif "codebook.weight" in weights and "encoder.0.0.weight" in weights:
            about = _strided(weights, file)
        else:
            raise DataError(
                f"{file} is no tokenizer that is known here (it holds {', '.join(sorted(weights)[:3])}); give {KNOWN}"
            )
    except (KeyError, IndexError) as error:
        raise DataError(
            f"{file} is no whole tokenizer: {error} is missing or has no right shape; give {KNOWN}"
        ) from error
    if decoder is not None and about.layout != "dall-e":
        raise DataError(
            f"{file} is of the layout {about.layout}, which has its decoder inside or none; leave out --decoder"
        )
    with torch.random.fork_rng(devices=[]):
        wanted = network_of(about).state_dict()
    wrong = sorted(wanted.keys() ^ weights.keys()) or [n for n in wanted if wanted[n].shape != weights[n].shape]
    if wrong:
        raise DataError(
            f"{file} is no whole {about.layout} tokenizer: {wrong[0]!r} is missing, strange or of another shape"
        )
    broken = [n for n in wanted if not bool(torch.isfinite(weights[n]).all())]
    if broken:
        raise DataError(f"{file} is damaged: its weight {broken[0]!r} holds numbers that are not finite; get it again")
    return about, save_tokenizer(out, about, {name: weights[name].float() for name in wanted})


def _tensors(file: Path) -> dict[str, Tensor]:
    """A file's state dict, whether it holds one, a checkpoint with one, or a pickled module."""
    stand_ins: list[Any] = [(_Box, name) for name in STAND_INS]
    found = read_foreign(file, stand_ins)
    for key in ("model", "state_dict", "weights"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if isinstance(found, _Box):
        found = _unboxed(found, "", set())
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise DataError(f"{file} holds no dictionary of tensors; {ADVICE}")
    return {str(name).removeprefix("module."): value for name, value in found.items()}


def _unboxed(box: _Box, prefix: str, seen: set[int]) -> dict[str, Tensor]:
    """The parameters of a pickled module and of all below it, by name."""
    seen.add(id(box))
    found: dict[str, Tensor] = {}
    for name, value in {**box.part("_parameters"), **box.part("_buffers")}.items():
        if isinstance(value, Tensor):
            found[f"{prefix}{name}"] = value.detach()
    for name, below in box.part("_modules").items():
        if isinstance(below, _Box) and id(below) not in seen:  # a made-up file may go round in circles
            found |= _unboxed(below, f"{prefix}{name}.", seen)
    return found


def _dalle(weights: Mapping[str, Tensor], file: Path, decoder: Path | None) -> tuple[About, dict[str, Tensor]]:
    first, last = weights["blocks.input.w"], weights["blocks.output.conv.w"]
    if first.shape[-1] == 1:
        raise DataError(f"{file} is a decoder; give the encoder's file, and this one with --decoder")
    sizes = {"width": first.shape[0], "blocks": _blocks(weights), "codebook": last.shape[0], "channels": first.shape[1]}
    found = {f"encoder.{name}": weight for name, weight in weights.items()}
    if decoder is not None:
        back = _tensors(decoder)
        if "blocks.output.conv.w" not in back or back["blocks.input.w"].shape[1:] != (sizes["codebook"], 1, 1):
            raise DataError(
                f"{decoder} is no decoder of {sizes['codebook']} tokens; give the decoder.pkl that belongs to {file}"
            )
        sizes["code_width"], sizes["decoder_width"] = (
            back["blocks.input.w"].shape[0],
            back["blocks.output.conv.w"].shape[1],
        )
        sizes["decoder_blocks"] = _blocks(back)
        found |= {f"decoder.{name}": weight for name, weight in back.items()}
    about = About(
        layout="dall-e",
        codebook=sizes["codebook"],
        downsampling=8,
        channels=sizes["channels"],
        sizes=sizes,
        decodes=decoder is not None,
        source=file.name,
    )
    return about, found


def _blocks(weights: Mapping[str, Tensor]) -> int:
    return len({name.split(".")[2] for name in weights if name.startswith("blocks.group_1.block_")})


def _strided(weights: Mapping[str, Tensor], file: Path) -> About:
    levels = len({name for name in weights if re.fullmatch(r"encoder\.\d+\.0\.weight", name)})
    first, codes = weights["encoder.0.0.weight"], weights["codebook.weight"]
    sizes = {
        "levels": levels,
        "width": first.shape[0],
        "codebook": codes.shape[0],
        "code_width": codes.shape[1],
        "channels": first.shape[1],
    }
    blocks = len({name for name in weights if re.fullmatch(r"encoder\.\d+\.net\.0\.weight", name)})
    between = blocks > 0 and "decoder.0.0.weight" in weights  # DALLE-pytorch's begins with a single convolution
    if not between:
        sizes["blocks"] = blocks
    return About(
        layout="beit" if between else "dalle-pytorch",
        codebook=sizes["codebook"],
        downsampling=2**levels,
        channels=sizes["channels"],
        sizes=sizes,
        source=file.name,
    )


def _vqkd(weights: Mapping[str, Tensor], file: Path) -> tuple[About, dict[str, Tensor]]:
    found = vqkd.renamed(weights)
    sizes = vqkd.sizes_of(found)
    side = sizes["patch"] * sizes["rows"]
    about = About(
        layout="vq-kd",
        codebook=sizes["codebook"],
        downsampling=sizes["patch"],
        channels=sizes["channels"],
        trained_at=(side, side),
        sizes=sizes,
        decodes=False,
        source=file.name,
    )
    return about, found
