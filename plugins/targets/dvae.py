"""Hidden patches are predicted as tokens of a frozen discrete autoencoder."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mae_pipe.api import Target, Tokenizer, View, load_tokenizer, plugin


@plugin("dvae")
class DvaeTarget(Target):
    """Predict the token of each patch; cross-entropy (BEiT, Bao et al. 2022; MAE, He et al. 2022, table 1d).

    The tokenizer sees the same crop as the encoder, brought to its own size on the device, so that there
    is one token a patch: 112 pixels for 14 patches and a downsampling of 8.

    Options:
        tokenizer: a folder that mae-pipe tokenizer train or import wrote.
    """

    def __init__(self, *, view: View, tokenizer: str = "") -> None:
        super().__init__()
        if not tokenizer:
            raise ValueError("tokenizer is missing: give a folder that mae-pipe tokenizer train or import wrote")
        self.view = view
        # In a list, so that its weights stay in its own folder and not in every checkpoint; its hash is recorded.
        self._tokenizer: list[Tokenizer] = [load_tokenizer(tokenizer)]
        about = self._tokenizer[0].about
        if about.channels != view.channels:
            raise ValueError(
                f"the tokenizer {tokenizer} is for {about.channels} channels, the images have {view.channels}"
            )
        self.width = about.codebook

    @property
    def tokenizer(self) -> Tokenizer:
        """On the device on which it was used last."""
        return self._tokenizer[0]

    def truth(self, images: Tensor) -> Tensor:
        tokenizer = self.tokenizer.to(images.device)
        tokens: Tensor = tokenizer(self.view.colours(images).clamp(0, 1), self.view.grid.rows, self.view.grid.cols)
        return tokens.flatten(1)

    def loss(self, prediction: Tensor, truth: Tensor) -> Tensor:
        return F.cross_entropy(prediction.float().transpose(1, 2), truth, reduction="none")

    def picture(self, prediction: Tensor, images: Tensor) -> Tensor:
        tokenizer = self.tokenizer.to(images.device)
        tokens = prediction.argmax(dim=-1).reshape(len(images), self.view.grid.rows, self.view.grid.cols)
        if tokenizer.about.decodes:
            colours = tokenizer.picture(tokens)
            size = self.view.height, self.view.width
            return self.view.normalised(F.interpolate(colours, size, mode="bicubic", antialias=True).clamp(0, 1))
        # An encoder alone: each token in a colour of its own.
        shades = torch.stack([tokens * prime % 251 / 250 for prime in (37, 89, 151)], dim=1)
        shades = shades[:, : self.view.channels].expand(-1, min(3, self.view.channels), -1, -1)
        drawn = F.interpolate(shades.float(), (self.view.height, self.view.width))
        if self.view.channels > 3:
            drawn = drawn.mean(1, keepdim=True).expand(-1, self.view.channels, -1, -1)
        return self.view.normalised(drawn)

    @property
    def caption(self) -> str:
        if self.tokenizer.about.decodes:
            return "the tokenizer's picture of the most likely token of every patch"
        return "the tokenizer has no decoder: each colour is one of its tokens, the most likely of the patch"

    def provenance(self) -> dict[str, str]:
        return {"tokenizer": self.tokenizer.hash}
