"""Tokenizers from elsewhere: a local file's tensors, and nothing else of it, become a tokenizer's folder."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mae_pipe.errors import DataError
from mae_pipe.tokenizer.folder import About, network_of, save_tokenizer

STAND_INS = (  # the classes that OpenAI's encoder.pkl and decoder.pkl name; each is read as an empty box
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.linear.Identity",
)


class _Box:
    """Stands for a module in a pickle: it keeps what the file says of it and does nothing."""

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


def import_tokenizer(file: Path, out: Path) -> tuple[About, str]:
    """Read ``file``, write the folder ``out``; returns what it is and its hash.

    Raises:
        DataError: the file is missing, damaged, holds more than tensors, or is of no layout that is known.
    """
    if out.exists():
        raise DataError(f"{out} exists already; choose another --out")
    weights = _tensors(file)
    if any(name.startswith("blocks.group_1.") for name in weights):
        about = _dalle(weights, file)
    elif "codebook.weight" in weights and any(name.startswith("encoder.") for name in weights):
        about = _beit(weights, file)
    else:
        some = ", ".join(sorted(weights)[:3])
        raise DataError(
            f"{file} is no tokenizer that is known here (its weights begin with {some}); expected OpenAI's dVAE "
            "encoder, or the discrete VAE of BEiT's repository"
        )
    with torch.random.fork_rng(devices=[]):
        wanted = network_of(about).state_dict()
    wrong = sorted(wanted.keys() ^ weights.keys()) or [n for n in wanted if wanted[n].shape != weights[n].shape]
    if wrong:
        raise DataError(
            f"{file} is no whole {about.layout} tokenizer: {wrong[0]!r} is missing, strange or of another shape"
        )
    return about, save_tokenizer(out, about, {name: weights[name].float() for name in wanted})


def _tensors(file: Path) -> dict[str, Tensor]:
    """A file's state dict, whether it holds one, a checkpoint with one, or a pickled module."""
    if not file.is_file():
        raise DataError(f"there is no file {file}; give a local .pkl, .pth or .safetensors file")
    stand_ins: list[Any] = [(_Box, name) for name in STAND_INS]
    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        # torch warns of pickles that others wrote; what it cannot read it refuses all the same.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(stand_ins):
            found: Any = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"{named[1]}" if named else "more than tensors"
        raise DataError(f"{file} names {what}, which is not read: a file of weights holds tensors only") from error
    except (SafetensorError, RuntimeError, ValueError, EOFError, KeyError, OSError) as error:
        raise DataError(f"{file} cannot be read: {(str(error).splitlines() or ['it is empty'])[0]}") from error
    for key in ("model", "state_dict", "weights"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if isinstance(found, _Box):
        return dict(_unboxed(found, ""))
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise DataError(f"{file} holds no dictionary of tensors; give a state dict")
    return {name.removeprefix("module."): value for name, value in found.items()}


def _unboxed(box: _Box, prefix: str) -> Mapping[str, Tensor]:
    """The parameters of a pickled module and of all below it, by name."""
    found: dict[str, Tensor] = {}
    for name, value in {**vars(box).get("_parameters", {}), **vars(box).get("_buffers", {})}.items():
        if isinstance(value, Tensor):
            found[prefix + name] = value.detach()
    for name, below in vars(box).get("_modules", {}).items():
        if isinstance(below, _Box):
            found |= _unboxed(below, f"{prefix}{name}.")
    return found


def _dalle(weights: Mapping[str, Tensor], file: Path) -> About:
    blocks = len({name.split(".")[2] for name in weights if name.startswith("blocks.group_1.block_")})
    sizes = {
        "width": _of(weights, "blocks.input.w", file).shape[0],
        "blocks": blocks,
        "codebook": _of(weights, "blocks.output.conv.w", file).shape[0],
        "channels": _of(weights, "blocks.input.w", file).shape[1],
    }
    return About(
        layout="dall-e",
        codebook=sizes["codebook"],
        downsampling=8,
        channels=sizes["channels"],
        sizes=sizes,
        decodes=False,
        source=file.name,
    )


def _beit(weights: Mapping[str, Tensor], file: Path) -> About:
    levels = len({n for n in weights if re.fullmatch(r"encoder\.\d+\.0\.weight", n)})
    sizes = {
        "levels": levels,
        "width": _of(weights, "encoder.0.0.weight", file).shape[0],
        "blocks": len({n for n in weights if re.fullmatch(r"encoder\.\d+\.net\.0\.weight", n)}),
        "codebook": _of(weights, "codebook.weight", file).shape[0],
        "code_width": _of(weights, "codebook.weight", file).shape[1],
        "channels": _of(weights, "encoder.0.0.weight", file).shape[1],
    }
    return About(
        layout="beit",
        codebook=sizes["codebook"],
        downsampling=2**levels,
        channels=sizes["channels"],
        sizes=sizes,
        source=file.name,
    )


def _of(weights: Mapping[str, Tensor], name: str, file: Path) -> Tensor:
    if name not in weights:
        raise DataError(f"{file} is no whole tokenizer: {name!r} is missing")
    return weights[name]
