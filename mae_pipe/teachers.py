"""A frozen network that says what patches are like: a timm model, or the encoder of a run."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_pipe.autoencoder import Encoder, build_encoder
from mae_pipe.contracts import Grid, View
from mae_pipe.errors import DataError, PluginError, closest
from mae_pipe.foreign_files import read_foreign
from mae_pipe.recipe import Pretrain

NO_WEIGHTS = "none"  # asked for by name, as a random teacher is rarely meant


class Teacher:
    """Patch features of images, without gradients.

    It is no module: its weights are its file's, not the run's, and stay out of checkpoints. They move to
    the images' device when first used.

    Args:
        name: a timm model, or the folder of a pretraining run.
        weights: of a timm model, a .safetensors or .pth file with its names; or "none": as it is initialised.
        view: of the images that are given.
    """

    def __init__(self, name: str, weights: str, view: View) -> None:
        self.view = view
        folder = Path(name)
        if (folder / "recipe.json").is_file():
            model, mean, std, self.hash = _of_run(folder, view)
        else:
            model, mean, std, self.hash = _of_timm(name, weights, view)
        self.model = model.eval().requires_grad_(False)
        self.theirs = View(view.height, view.width, view.patch, mean, std)
        with torch.no_grad():
            self.width = int(self.model(torch.zeros(1, view.channels, view.height, view.width)).shape[1])

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """[B, C, H, W] normalised for ``view`` -> [B, N, width] float32, a vector for each patch."""
        if next(self.model.parameters()).device != images.device:
            self.model.to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            features: Tensor = self.model(self.theirs.normalised(self.view.colours(images)))
        grid = self.view.grid
        if features.shape[-2:] != (grid.rows, grid.cols):
            features = _resampled(features, grid)
        return features.flatten(2).transpose(1, 2)


def _of_timm(name: str, weights: str, view: View) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...], str]:
    if not timm.is_model(name):
        known = timm.list_models()
        raise PluginError(f"there is no timm model {name!r}{closest(name, known)}, and no run folder of that name")
    if not weights:
        raise PluginError(
            f"the teacher {name!r} needs weights: give the path of a .safetensors or .pth file of them, "
            f'or weights = "{NO_WEIGHTS}" for a teacher that was never trained'
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, size = _built(name, view)
    digest = NO_WEIGHTS
    if weights != NO_WEIGHTS:
        state, digest = _read(Path(weights))
        if hasattr(model, "pos_embed"):
            state = timm.models.vision_transformer.checkpoint_filter_fn(state, model)  # type: ignore[arg-type]
        state = {n: w for n, w in state.items() if not n.startswith(("head.", "fc.", "classifier."))}
        missing, strange = model.load_state_dict(state, strict=False)
        if missing or strange:
            raise PluginError(
                f"the weights {weights} are not those of {name!r}: {len(missing)} are missing"
                f"{f', first {missing[0]!r}' if missing else ''}, {len(strange)} are strange"
                f"{f', first {strange[0]!r}' if strange else ''}; give a file with timm's names"
            )
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    mean, std = config.get("mean", (0.5,) * 3), config.get("std", (0.5,) * 3)
    if len(mean) != view.channels:
        mean, std = view.mean, view.std
    return _Sized(model, size), tuple(mean), tuple(std), digest


def _built(name: str, view: View) -> tuple[nn.Module, tuple[int, int]]:
    """A timm model, and the size at which it should see images: a ViT has as many patches there as we have."""
    with torch.device("meta"):
        patch = getattr(getattr(timm.create_model(name, num_classes=0), "patch_embed", None), "patch_size", None)
    size = (view.height, view.width) if patch is None else (view.grid.rows * patch[0], view.grid.cols * patch[1])
    try:
        return timm.create_model(name, num_classes=0, in_chans=view.channels, img_size=size), size
    except TypeError:  # convolutions take any size
        return timm.create_model(name, num_classes=0, in_chans=view.channels), (view.height, view.width)


def _of_run(folder: Path, view: View) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...], str]:
    from mae_pipe.classification import fill, read_weights
    from mae_pipe.runs import read_recipe
    from mae_pipe.tasks import view_of

    recipe = read_recipe(folder)
    if not isinstance(recipe, Pretrain):
        raise PluginError(f"the teacher {folder} is a {recipe.task} run; give the folder of a pretraining run")
    if len(recipe.data.mean) != view.channels:
        raise PluginError(
            f"the teacher {folder} sees {len(recipe.data.mean)} channels, the images have {view.channels}"
        )
    shape = recipe.encoder.model_copy(update={"mask_tokens": False})
    size = view.grid.rows * shape.sides[0], view.grid.cols * shape.sides[1]
    with torch.random.fork_rng(devices=[]):
        encoder = build_encoder(shape, size, channels=view.channels)
    weights, digest = read_weights(folder)
    fill(encoder, weights, view_of(recipe.data, recipe.encoder).grid)
    return _Sized(encoder, size), recipe.data.mean, recipe.data.std, digest


class _Sized(nn.Module):
    """A network that sees every image at one size, with timm's method and attributes."""

    def __init__(self, network: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.size = network, size
        self.prefix = int(getattr(network, "num_prefix_tokens", 0))
        self.channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, width, rows, cols] float32, on the network's own grid."""
        if images.shape[-2:] != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True)
        ours = isinstance(self.network, Encoder)
        found: Tensor = (self.network if ours else self.network.forward_features)(images)  # type: ignore[operator]
        if found.dim() == 4:
            return (found.permute(0, 3, 1, 2) if self.channels_last else found).float()
        return _unrolled(found[:, self.prefix :], self.size[0] / self.size[1]).float()


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    """Weights without running what the file may hold, and a fingerprint of the file."""
    if not path.is_file():
        raise PluginError(f"there is no file of weights {path}; give a .safetensors or .pth file")
    try:
        found = read_foreign(path)
    except DataError as error:
        raise PluginError(f"the weights of the teacher: {error}") from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    for key in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise PluginError(f"the weights {path} are no dictionary of tensors; give a state dict")
    return found, digest


def _unrolled(patches: Tensor, ratio: float) -> Tensor:
    """[B, n, D] -> [B, D, rows, cols], for images of height / width ``ratio``."""
    count = patches.shape[1]
    rows = min((r for r in range(1, count + 1) if count % r == 0), key=lambda r: abs(math.log(r * r / count / ratio)))
    return patches.transpose(1, 2).reshape(len(patches), -1, rows, count // rows)


def _resampled(features: Tensor, grid: Grid) -> Tensor:
    """A feature map on another grid: means where it is finer, between its values where it is coarser."""
    size = grid.rows, grid.cols
    if features.shape[-2] >= size[0] and features.shape[-1] >= size[1]:
        return F.adaptive_avg_pool2d(features, size)
    return F.interpolate(features, size, mode="bilinear", align_corners=False)
