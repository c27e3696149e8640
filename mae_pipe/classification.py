"""An encoder with a head as one module: a batch in, a loss or its measures out; what DeepSpeed wraps."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from mae_pipe.autoencoder import Encoder, build_encoder
from mae_pipe.catalog import Catalog
from mae_pipe.contracts import Grid, Head
from mae_pipe.erasing import erased
from mae_pipe.errors import PluginError, RecipeError, RunError
from mae_pipe.mixing import Mixer
from mae_pipe.partial import freeze_below
from mae_pipe.pixels import Channels, normalise
from mae_pipe.positions import refitted
from mae_pipe.recipe import Downstream, Mixing, Pretrain
from mae_pipe.rng import Rng
from mae_pipe.seeding import key
from mae_pipe.tasks import view_of

if TYPE_CHECKING:
    from mae_pipe.data.batch import Batch

WEIGHTS = "encoder.safetensors"
_UNMIXED = Mixing()
UNTRAINED = "untrained"  # in place of a fingerprint of weights
UNUSED = ("norm.weight", "norm.bias")  # of an encoder whose final norm a head does without


class Classification(nn.Module):
    """A head on the tokens of whole images.

    Attributes:
        recalled: batches hold tokens in place of pixels: what the frozen encoder said of the images before.

    Args:
        tuned: how many of the encoder's last blocks train (``partial.py``); the rest stays as it is, in evaluation
            mode and without gradients. 0: a probe.
        classes: C.
        label_smoothing: share of a training label that is spread over all classes.
        mean, std: of pixels in [0, 1].
        erase: in training, probability that a box of an image becomes noise.
        mixing: in training, of the images of a micro-batch and their labels.
        seed: of both.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: Head,
        *,
        tuned: float,
        classes: int,
        label_smoothing: float,
        mean: Channels,
        std: Channels,
        erase: float = 0.0,
        mixing: Mixing = _UNMIXED,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.frozen = encoder, head, tuned == 0
        self.label_smoothing, self.erase, self.mixing = label_smoothing, erase, mixing
        self.mean, self.std = mean, std
        self._mixer = Mixer(mixing, classes=classes, smoothing=label_smoothing, seed=seed)
        self._erase_key = key(seed, "erase")
        if label_smoothing and head.labels != "class":
            raise RecipeError(f"label_smoothing {label_smoothing} is for one class an image; set label_smoothing=0")
        if mixing.on and head.labels != "class":
            raise RecipeError("mixing is for one class an image; set mixing.mixup=0 and mixing.cutmix=0")
        self.recalled = False
        self._trained = freeze_below(encoder, tuned)
        self.left_out: list[str] = []  # given weights that are not used, on purpose
        self.train()

    @classmethod
    def from_recipe(
        cls,
        recipe: Downstream,
        pretrained: Pretrain,
        weights: Mapping[str, Tensor] | None,
        catalog: Catalog,
        *,
        classes: int,
    ) -> Classification:
        """The encoder of ``pretrained`` with ``weights``, or None: as it was before pretraining; and a new head.

        Raises:
            RunError: a weight is missing, is not the encoder's, or has another shape.
        """
        depth = pretrained.encoder.depth
        tuned = 0.0 if recipe.task == "probe" else depth if recipe.tune_blocks is None else recipe.tune_blocks
        if tuned > depth:
            raise RecipeError(f"tune_blocks {tuned:g} is more than the encoder has; set it to {depth} at most")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key(pretrained.seed, "weights") % 2**63)  # as MaskedAutoencoder.from_recipe draws them
            encoder = build_encoder(
                pretrained.encoder.model_copy(update={"mask_tokens": False}),  # nothing is hidden here
                recipe.data.sides,
                channels=len(recipe.data.mean),
                positions="learned" if tuned == depth else "fixed",
                drop_path=recipe.drop_path if tuned else 0.0,
                dropout=recipe.dropout,
            )
            torch.manual_seed(key(recipe.seed, "head") % 2**63)
            head = catalog.build(
                "head",
                recipe.head.name,
                recipe.head.options,
                width=pretrained.encoder.width,
                classes=classes,
                class_tokens=pretrained.encoder.class_tokens,
                view=view_of(recipe.data, pretrained.encoder),
            )
        _check_blocks(head, depth, trains=tuned > 0)
        left_out = [] if head.normed or weights is None else [name for name in UNUSED if name in weights]
        if not head.normed:
            encoder.norm = nn.Identity()
        if weights is not None:
            grid = view_of(pretrained.data, pretrained.encoder).grid
            fill(encoder, {name: weight for name, weight in weights.items() if name not in left_out}, grid)
        task = cls(
            encoder,
            head,
            tuned=tuned,
            classes=classes,
            label_smoothing=recipe.label_smoothing,
            mean=recipe.data.mean,
            std=recipe.data.std,
            erase=recipe.data.erase,
            mixing=recipe.mixing,
            seed=recipe.seed,
        )
        task.left_out = left_out
        return task

    @overload
    def forward(self, batch: Batch, mode: Literal["loss"] = "loss") -> Tensor: ...

    @overload
    def forward(self, batch: Batch, mode: Literal["scores"]) -> Tensor: ...

    @overload
    def forward(self, batch: Batch, mode: Literal["metrics"]) -> dict[str, Tensor]: ...

    def forward(self, batch: Batch, mode: str = "loss") -> Tensor | dict[str, Tensor]:
        """The mean loss, a float32 scalar; "scores": the head's output; or "loss" and its metrics, [B] float32.

        All go through here because ZeRO 3 gathers weights when the root module is called.
        """
        images, labels = self._images(batch), batch.labels
        if mode == "loss":
            images, labels = self._varied(images, batch)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            tokens = self.tokens_of(images)
        output: Tensor = self.head(tokens)
        if mode == "scores":
            return output
        if mode == "loss":
            return self.head.loss(output, labels).mean()
        # Padding has -1; its values are not counted.
        labels = labels.clamp(min=0) if self.head.labels == "class" else labels
        return {"loss": self.head.loss(output, labels), **self.head.metrics(output, labels)}

    def train(self, mode: bool = True) -> Classification:
        super().train(mode)
        self.encoder.eval()
        for part in self._trained:
            part.train(mode)
        return self

    def features(self, batch: Batch) -> Tensor:
        """What the head is given: [B, T + N, D] tokens, or [B, K, T + N, D] of K blocks."""
        return self.tokens_of(self._images(batch))

    def tokens_of(self, images: Tensor) -> Tensor:
        """[B, C, H, W] normalised images -> [B, T + N, D], or [B, K, T + N, D] of the blocks that the head names."""
        if self.recalled:
            return images.to(self.encoder.patch_embed.proj.weight.dtype)
        if self.head.blocks:
            return self.encoder.after_blocks(images, self.head.blocks)
        tokens: Tensor = self.encoder(images)
        return tokens

    def _images(self, batch: Batch) -> Tensor:
        """[B, C, H, W] normalised; or tokens."""
        return batch.pixels if self.recalled else normalise(batch.pixels, self.mean, self.std)

    def _varied(self, images: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the loss is of: in training erased and mixed images; classes as they are, or shares of them."""
        if self.training and self.erase:
            images = erased(images, Rng(self._erase_key, batch.positions), self.erase)
        if self.training and self.mixing.on:
            return self._mixer(images, batch.labels, batch.positions)
        return images, self._mixer.shares(batch.labels) if self.label_smoothing else batch.labels


def _check_blocks(head: Head, depth: int, *, trains: bool) -> None:
    """Refuse blocks that the encoder has not, and finetuning of blocks that nobody would read."""
    blocks, name = head.blocks, type(head).__name__
    if not blocks:
        return
    if head.normed:
        raise PluginError(
            f"{name} asks for tokens of several blocks, which have no norm; set self.normed = False in it"
        )
    if list(blocks) != sorted(set(blocks)) or blocks[0] < 0 or blocks[-1] >= depth:
        raise RecipeError(
            f"the head's blocks {list(blocks)} must rise and be of the encoder's, 0 to {depth - 1}; change head.options"
        )
    if trains and blocks[-1] != depth - 1:
        raise RecipeError(
            f"the head's blocks {list(blocks)} leave out the encoder's last one, which would not train; "
            f"end them with {depth - 1}"
        )


def read_weights(run: Path) -> tuple[dict[str, Tensor], str]:
    """A pretraining run's encoder, timm's names, and a fingerprint of its file."""
    path = run / WEIGHTS
    if not path.is_file():
        raise RunError(
            f"{run} has no {WEIGHTS}; let mae-pipe pretrain write its first checkpoint, or give --from-scratch"
        )
    content = path.read_bytes()
    try:
        return load(content), hashlib.sha256(content).hexdigest()[:16]
    except SafetensorError as error:
        raise RunError(f"{path} is damaged ({error}); go on with mae-pipe pretrain, which writes it again") from error


def fill(encoder: Encoder, weights: Mapping[str, Tensor], grid: Grid) -> None:
    """Put ``weights``, whose positions are of ``grid``, into ``encoder``: every one and no other."""
    wanted, given = encoder.state_dict(), refitted(weights, grid, encoder.grid, first=encoder.num_prefix_tokens)
    advice = "give the run folder that mae-pipe pretrain wrote, with its own recipe.json"
    for name in wanted:
        if name not in given:
            raise RunError(f"the pretrained encoder has no weight {name!r}; {advice}")
        if given[name].shape != wanted[name].shape:
            raise RunError(
                f"the pretrained weight {name!r} has shape {list(given[name].shape)}, expected "
                f"{list(wanted[name].shape)}; {advice}"
            )
    strange = sorted(set(given) - set(wanted))
    if strange:
        raise RunError(f"the pretrained encoder has the weight {strange[0]!r}, which its recipe has not; {advice}")
    encoder.load_state_dict(given)
