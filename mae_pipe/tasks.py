"""Masked autoencoding as one module: a batch in, a loss out; what DeepSpeed wraps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mae_pipe.autoencoder import Decoder, Encoder
from mae_pipe.catalog import Catalog
from mae_pipe.contracts import MaskSampler, Target, View
from mae_pipe.errors import PluginError, RecipeError
from mae_pipe.masking import Mask, visible_count
from mae_pipe.method import Method, Reconstruction
from mae_pipe.pixels import normalise
from mae_pipe.recipe import Data, EncoderShape, Pretrain

if TYPE_CHECKING:
    from mae_pipe.data.batch import Batch


class MaskedAutoencoder(Method):
    """Hide patches, encode the visible ones, predict the hidden ones (MAE, He et al. 2022).

    Args:
        sampler: ranks the patches; the highest ``ratio`` of them are hidden.
        target: what is predicted, and the loss.
        everywhere: the loss is over all patches, not only hidden ones.
    """

    encoder: Encoder
    target: Target

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        sampler: MaskSampler,
        target: Target,
        *,
        ratio: float,
        everywhere: bool = False,
    ) -> None:
        super().__init__()
        self.everywhere = everywhere
        self.encoder, self.decoder, self.sampler, self.target = encoder, decoder, sampler, target
        self.grid, self.ratio = encoder.grid, ratio
        if visible_count(self.grid.size, ratio) == self.grid.size:
            raise RecipeError(f"mask.ratio {ratio} hides none of {self.grid.size} patches; raise it")

    @classmethod
    def from_recipe(cls, recipe: Pretrain, catalog: Catalog) -> MaskedAutoencoder:
        """The recipe's, with first weights that depend on its seed alone, so that all ranks agree.

        Raises:
            RecipeError: the recipe has another method.
        """
        from mae_pipe.building import build

        found = build(recipe, catalog)
        if not isinstance(found, MaskedAutoencoder):
            raise RecipeError(f"this is for masked autoencoders, and the recipe's method is {recipe.method.name!r}")
        return found

    def loss(self, batch: Batch) -> Tensor:
        """The mean over the hidden patches of all images, or over all patches, a float32 scalar."""
        images = self.images(batch)
        return self.loss_of(images, self.scores_of(images, batch))

    def images(self, batch: Batch) -> Tensor:
        """[B, C, H, W] normalised."""
        return normalise(batch.pixels, self.view.mean, self.view.std)

    def scores_of(self, images: Tensor, batch: Batch) -> Tensor:
        """[B, N] float32: the sampler's, which rank the patches of ``images``, the batch's normalised."""
        scores = self.sampler.scores(images, self.grid, self.rng(batch, "mask"))
        if scores.shape != (len(images), self.grid.size):
            raise PluginError(
                f"the mask sampler {type(self.sampler).__name__} gave scores of shape {list(scores.shape)}; "
                f"expected [{len(images)}, {self.grid.size}], one number a patch"
            )
        return scores

    def loss_of(self, images: Tensor, scores: Tensor) -> Tensor:
        """[B, C, H, W] normalised images and [B, N] scores -> the mean loss over hidden patches, or over all."""
        mask = Mask.from_scores(scores, self.ratio)
        tokens = self.encoder(images, mask)  # [B, T + V, D]
        prediction = self.decoder(tokens, mask, everywhere=self.everywhere).float()  # [B, M, K]: hidden patches only
        with torch.no_grad():
            truth = self.target.truth(images) if self.everywhere else self.target.truth_at(images, mask.hidden)
        return self.target.loss(prediction, truth).mean()

    def reconstruction(self, batch: Batch) -> Reconstruction:
        """What the decoder makes of every patch."""
        images = self.images(batch)
        mask = Mask.from_scores(self.scores_of(images, batch), self.ratio)
        prediction = self.decoder(self.encoder(images, mask), mask, everywhere=True).float()  # [B, N, K]
        return Reconstruction(images, mask, self.target.picture(prediction, images), self.target.caption)


def view_of(data: Data, encoder: EncoderShape) -> View:
    """What a recipe's model sees of an image."""
    return View(*data.sides, patch=encoder.sides, mean=data.mean, std=data.std)
