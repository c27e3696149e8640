"""Masked image modelling without a decoder."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mae_pipe.api import Batch, Mask, MaskSampler, Method, Reconstruction, Target, gather, plugin

STD = 0.02  # of the first weights


@plugin("beit")
class Beit(Method):
    """Replace hidden patches with mask tokens, and predict them with one linear layer (BEiT, Bao et al. 2022).

    The encoder sees all places of the image (``encoder.mask_tokens``). What is hidden and predicted, the tables
    ``[mask]`` and ``[target]`` say: BEiT's own are the mask ``beit`` and the tokens of ``dvae``. The loss is the
    target's, over hidden patches only. First weights are BEiT's: truncated normals, and the last layer of both
    halves of block l divided by sqrt(2 l).
    """

    def __init__(self, *, encoder: Any, sampler: MaskSampler, ratio: float, target: Target) -> None:
        super().__init__()
        if encoder.mask_token is None:
            raise ValueError("BEiT's encoder sees a token at hidden patches; set encoder.mask_tokens=true")
        if int(encoder.grid.size * (1 - ratio)) == encoder.grid.size:
            raise ValueError(f"mask.ratio {ratio} hides none of {encoder.grid.size} patches; raise it")
        self.encoder, self.sampler, self.ratio, self.target = encoder, sampler, ratio, target
        self.head = nn.Linear(encoder.num_features, target.width)
        _initialise(self)

    def loss(self, batch: Batch) -> Tensor:
        """The mean of the target's loss over the hidden patches of all images, a float32 scalar."""
        images, mask, tokens = self._seen(batch)
        with torch.no_grad():
            truth = self.target.truth_at(images, mask.hidden)
        return self.target.loss(self.head(tokens[:, mask.visible_count :]).float(), truth).mean()

    def reconstruction(self, batch: Batch) -> Reconstruction:
        """What the linear layer makes of every patch."""
        images, mask, tokens = self._seen(batch)
        prediction = self.head(gather(tokens, mask.restore)).float()  # [B, N, K]
        return Reconstruction(images, mask, self.target.picture(prediction, images), self.target.caption)

    def _seen(self, batch: Batch) -> tuple[Tensor, Mask, Tensor]:
        """Images, their mask, and tokens [B, N, D]: of visible patches, then of hidden ones."""
        (images,) = self.images_of(batch)
        mask = Mask.from_scores(self.sampler.scores(images, self.view.grid, self.rng(batch, "mask")), self.ratio)
        encoder: Any = self.encoder
        return images, mask, encoder(images, mask)[:, encoder.num_prefix_tokens :]


def _initialise(method: Beit) -> None:
    """The official code's first weights; norms and layer scales stay as they begin."""
    encoder: Any = method.encoder
    for part in (*encoder.modules(), method.head):
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(part.weight, std=STD)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for token in (encoder.cls_token, encoder.reg_token, encoder.mask_token):
        if token is not None:
            nn.init.trunc_normal_(token, std=STD)
    with torch.no_grad():
        for number, block in enumerate(encoder.blocks, start=1):
            block.attn.proj.weight.div_(math.sqrt(2 * number))
            block.mlp.fc2.weight.div_(math.sqrt(2 * number))
