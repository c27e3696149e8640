"""A small UperNet on a pyramid that is made of one map."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POOLS = (1, 2, 3, 6)  # sides of the pooled maps (PSPNet, Zhao et al. 2017)


def _convolution(channels_in: int, channels_out: int, side: int, groups: int = 8) -> nn.Sequential:
    """Group norm: unlike batch norm it does not depend on the other images, nor on the number of ranks."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, side, padding=side // 2, bias=False),
        nn.GroupNorm(groups, channels_out),
        nn.ReLU(),
    )


class Upernet(nn.Module):
    """Pooled context, a top-down way over four sizes, and their fusion (Xiao et al. 2018)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.sizes = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(width, hidden, 2, stride=2),
                    nn.GroupNorm(8, hidden),
                    nn.GELU(),
                    nn.ConvTranspose2d(hidden, hidden, 2, stride=2),
                ),
                nn.ConvTranspose2d(width, hidden, 2, stride=2),
                nn.Conv2d(width, hidden, 1),
                nn.Conv2d(width, hidden, 3, stride=2, padding=1),
            ]
        )
        # A pooled map may be one pixel, of which small groups would leave nothing: one group of all channels.
        self.pools = nn.ModuleList(_convolution(hidden, hidden, 1, groups=1) for _ in POOLS)
        self.context = _convolution(hidden * (1 + len(POOLS)), hidden, 3)
        self.sides = nn.ModuleList(_convolution(hidden, hidden, 1) for _ in range(3))
        self.smooth = nn.ModuleList(_convolution(hidden, hidden, 3) for _ in range(3))
        self.fuse = _convolution(hidden * 4, hidden, 3)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, width, h, w] -> [B, hidden, 4 h, 4 w]."""
        levels = [size(maps) for size in self.sizes]  # 4 h, 2 h, h, h / 2
        pooled = [
            _to(pool(F.adaptive_avg_pool2d(levels[3], side)), levels[3])
            for side, pool in zip(POOLS, self.pools, strict=True)
        ]
        top = self.context(_joined([levels[3], *pooled]))
        outs = [top]
        for level, side, smooth in zip(levels[2::-1], self.sides, self.smooth, strict=True):
            top = side(level) + _to(top, level)
            outs.append(smooth(top))
        out: Tensor = self.fuse(_joined([_to(each, levels[0]) for each in outs]))
        return out


def _to(maps: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(maps, like.shape[-2:], mode="bilinear", align_corners=False)


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, dim=1)
