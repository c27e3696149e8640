"""A discrete variational autoencoder: pixels -> tokens -> pixels."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_pipe.tables import TokenizerShape
from mae_pipe.tokenizer.quantize import GumbelQuantizer, Quantizer, VectorQuantizer


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a straight way."""

    def __init__(self, width: int) -> None:
        super().__init__()
        groups = math.gcd(8, width)
        self.layers = nn.Sequential(
            nn.GroupNorm(groups, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(groups, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """[B, width, h, w], the same out."""
        out: Tensor = maps + self.layers(maps)
        return out


class DiscreteVae(nn.Module):
    """Convolutions down to a map of tokens, and up again (after DALL-E's dVAE, Ramesh et al. 2021).

    ``shape.downsampling`` pixels in a row and in a column become one token. Colours are in [0, 1].
    """

    def __init__(self, shape: TokenizerShape, channels: int = 3) -> None:
        super().__init__()
        levels = int(math.log2(shape.downsampling))
        widths = [shape.width * min(2**level, 4) for level in range(levels + 1)]
        self.quantizer: Quantizer
        if shape.kind == "vq":
            self.quantizer = VectorQuantizer(
                shape.codebook, shape.code_width, decay=shape.decay, commitment=shape.commitment
            )
        else:
            self.quantizer = GumbelQuantizer(shape.codebook, shape.code_width, divergence=shape.divergence)
        down: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
        for wide, wider in pairwise(widths):
            down += [nn.Conv2d(wide, wider, 4, stride=2, padding=1)]
            down += [Residual(wider) for _ in range(shape.blocks)]
        # No activation before the last layer: a common mean would turn all vectors the same way.
        down += [nn.GroupNorm(math.gcd(8, widths[-1]), widths[-1])]
        down += [nn.Conv2d(widths[-1], self.quantizer.channels_in, 1)]
        self.encoder = nn.Sequential(*down)
        up: list[nn.Module] = [nn.Conv2d(self.quantizer.channels_out, widths[-1], 1)]
        for wider, wide in zip(widths[:0:-1], widths[-2::-1], strict=True):
            up += [Residual(wider) for _ in range(shape.blocks)]
            up += [nn.Upsample(scale_factor=2), nn.Conv2d(wider, wide, 3, padding=1)]
        up += [nn.GroupNorm(math.gcd(8, widths[0]), widths[0]), nn.SiLU(), nn.Conv2d(widths[0], channels, 3, padding=1)]
        self.decoder = nn.Sequential(*up)

    def forward(self, colours: Tensor, temperature: Tensor | float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """[B, C, H, W] -> the colours again, [B, h, w] int64 tokens, and the quantizer's loss."""
        weights = next(self.decoder.parameters())
        mixed, tokens, loss = self.quantizer(self._encoded(colours), temperature)
        return self._colours(self.decoder(mixed.to(weights.dtype))), tokens, loss

    def tokens(self, colours: Tensor) -> Tensor:
        """[B, C, H, W] in [0, 1] -> [B, h, w] int64."""
        return self.quantizer.tokens(self._encoded(colours))

    def picture(self, tokens: Tensor) -> Tensor:
        """[B, h, w] int64 -> [B, C, H, W] in [0, 1]."""
        weights = next(self.decoder.parameters())
        return self._colours(self.decoder(self.quantizer.look_up(tokens).to(weights.dtype))).clamp(0, 1)

    def _encoded(self, colours: Tensor) -> Tensor:
        weights = next(self.encoder.parameters())
        maps: Tensor = self.encoder((2 * colours - 1).to(weights.dtype))
        return maps

    def _colours(self, decoded: Tensor) -> Tensor:
        return (decoded.float() + 1) / 2


def psnr(colours: Tensor, originals: Tensor) -> Tensor:
    """[B] peak signal-to-noise ratio in dB, of colours in [0, 1]."""
    return -10 * torch.log10(F.mse_loss(colours, originals, reduction="none").mean(dim=(1, 2, 3)).clamp(min=1e-10))
