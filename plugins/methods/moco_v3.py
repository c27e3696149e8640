"""Contrastive learning with a momentum encoder."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_pipe.api import Batch, Crop, Method, MomentumCopy, SyncedBatchNorm, of_all_ranks, plugin, rising

COLOURS = {"jitter": (0.4, 0.4, 0.2, 0.1), "jitter_share": 0.8, "grey": 0.2}  # of both views; BYOL's


@plugin("moco_v3")
class MoCoV3(Method):
    """Tell an image's other view from those of all other images (MoCo v3, Chen, Xie and He 2021).

    The encoder, a projector and a predictor make a query of one view; a slowly following copy of the first two makes
    a key of the other. A query has to find its key among those of the micro-batches of all ranks. The patch
    projection stays as it began, which the paper found steadier.

    Options:
        dim: numbers of a query and a key.
        hidden: width of the projector's and predictor's layers.
        temperature: of the softmax over keys.
        momentum: of the copy at the start; half a cosine leads to 1.
        colours: whether the views differ in colour too, not only in their crop.
    """

    follows = True
    batchwise = True

    def __init__(
        self,
        encoder: nn.Module,
        *,
        dim: int = 256,
        hidden: int = 4096,
        temperature: float = 0.2,
        momentum: float = 0.99,
        colours: bool = True,
    ) -> None:
        super().__init__()
        whole: Any = encoder
        if not whole.num_prefix_tokens:
            raise ValueError("it learns by the class token, and there is none; set encoder.class_tokens to 1")
        if temperature <= 0 or not 0 <= momentum <= 1:
            raise ValueError("temperature must be above 0, and momentum between 0 and 1")
        self.temperature, self.momentum = temperature, momentum
        self.views = (Crop(), Crop())
        if colours:
            self.views = (Crop(**COLOURS, blur=1.0), Crop(**COLOURS, blur=0.1, solarize=0.2))  # type: ignore[arg-type]
        begin(whole)
        whole.patch_embed.proj.requires_grad_(False)
        self.encoder = encoder
        self.projector = layers(whole.embed_dim, hidden, hidden, dim)
        self.predictor = layers(dim, hidden, dim)
        self.slow_encoder, self.slow_projector = MomentumCopy(encoder), MomentumCopy(self.projector)
        self._told: dict[str, Tensor] = {}

    def loss(self, batch: Batch) -> Tensor:
        """The mean over images, both views each other's key; in evaluation among this rank's images only."""
        images = torch.cat(self.images_of(batch))  # [2 B, C, H, W]: the first views, then the second
        # Views are normed each by itself, by statistics that the other does not share.
        queries = [self.predictor(self.projector(one)) for one in self.encoder(images)[:, 0].chunk(2)]  # of [B, K]
        precision = queries[0].dtype  # the copy's weights are float32 always
        with torch.no_grad(), torch.autocast(images.device.type, precision, enabled=precision != torch.float32):
            keys = [self.slow_projector(one) for one in self.slow_encoder(images)[:, 0].chunk(2)]
        return self._contrast(queries[0], keys[1]) + self._contrast(queries[1], keys[0])

    def _contrast(self, queries: Tensor, keys: Tensor) -> Tensor:
        """[B, K] queries and their keys -> InfoNCE over the keys of all ranks, times twice the temperature."""
        queries, keys = F.normalize(queries.float(), dim=1), F.normalize(keys.float(), dim=1)
        keys, first = of_all_ranks(keys) if self.training else (keys, 0)  # [world x B, K]
        logits = queries @ keys.T / self.temperature  # [B, world x B]
        own = torch.arange(first, first + len(queries), device=queries.device)
        if self.training:
            found, spread = logits.detach().argmax(dim=1) == own, queries.detach().std(dim=0)
            self._told = {"pairs_found": found.float().mean(), "output_spread": spread.mean() * queries.shape[1] ** 0.5}
        return F.cross_entropy(logits, own) * (2 * self.temperature)

    def after_step(self, progress: float) -> None:
        """The copy follows."""
        momentum = rising(self.momentum, progress)
        self.slow_encoder.follow(self.encoder, momentum)
        self.slow_projector.follow(self.projector, momentum)

    def signs(self) -> dict[str, float]:
        """Of the last micro-batch of this rank.

        ``pairs_found``: share of queries whose nearest key is their own; ``output_spread``: deviation of normalised
        queries, 1 where they fill the sphere and 0 where all are the same.
        """
        return {name: float(value) for name, value in self._told.items()}

    def features(self, images: Tensor) -> Tensor:
        """[B, C, H, W] normalised images -> [B, D] float32: the class token."""
        tokens: Tensor = self.encoder(images)
        return tokens[:, 0].float()


def layers(*widths: int) -> nn.Sequential:
    """Linear layers, each with batch norm and all but the last with ReLU; the last norm has no scale and shift."""
    made: list[nn.Module] = []
    for number, (before, after) in enumerate(itertools.pairwise(widths), start=2):
        last = number == len(widths)
        made += [nn.Linear(before, after, bias=False), SyncedBatchNorm(after, affine=not last)]
        made += [] if last else [nn.ReLU(inplace=True)]
    return nn.Sequential(*made)


def begin(encoder: Any) -> None:
    """The first weights of the official code where they are not MAE's: of q, k and v as three matrices, a smaller
    class token, and no bias of the patch projection."""
    for block in encoder.blocks:
        packed = block.attn.qkv.weight  # [3 D, D]
        bound = math.sqrt(6 / (packed.shape[0] // 3 + packed.shape[1]))
        nn.init.uniform_(packed, -bound, bound)
    nn.init.normal_(encoder.cls_token, std=1e-6)
    nn.init.zeros_(encoder.patch_embed.proj.bias)
