"""An UperNet on a pyramid that is made of one map, or of the maps of four blocks."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 4  # of the pyramid
POOLS = (1, 2, 3, 6)  # sides of the pooled maps (PSPNet, Zhao et al. 2017)


def _convolution(channels_in: int, channels_out: int, side: int, groups: int = 8) -> nn.Sequential:
    """Group norm: unlike batch norm it does not depend on the other images, nor on the number of ranks."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, side, padding=side // 2, bias=False),
        nn.GroupNorm(groups, channels_out),
        nn.ReLU(),
    )


def of_one(width: int, hidden: int) -> nn.ModuleList:
    """A pyramid of one map (ViTDet, Li et al. 2022): x 4, x 2, as it is, / 2; each [width] -> [hidden]."""
    return nn.ModuleList(
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


def of_blocks(width: int, hidden: int) -> nn.ModuleList:
    """BEiT's of four blocks: deconvolutions x 4 and x 2 at full width, the third as it is, the fourth pooled / 2.

    Then UperNet's own 1 x 1 lateral convolutions, but of the last, which goes into the pools at full width there.
    """
    twice = partial(nn.ConvTranspose2d, width, width, 2, stride=2)
    scales: tuple[list[nn.Module], ...] = (
        [twice(), nn.GroupNorm(1, width), nn.GELU(), twice()],
        [twice()],
        [],
        [nn.MaxPool2d(2, ceil_mode=True)],  # an odd side keeps its last row
    )
    return nn.ModuleList(nn.Sequential(*scale, _convolution(width, hidden, 1)) for scale in scales)


class Upernet(nn.Module):
    """Pooled context, a top-down way over four sizes, and their fusion (Xiao et al. 2018).

    Args:
        sizes: what makes the pyramid's four levels, [hidden] channels each.
    """

    def __init__(self, hidden: int, sizes: nn.ModuleList) -> None:
        super().__init__()
        self.sizes = sizes
        # A pooled map may be one pixel, of which small groups would leave nothing: one group of all channels.
        self.pools = nn.ModuleList(_convolution(hidden, hidden, 1, groups=1) for _ in POOLS)
        self.context = _convolution(hidden * (1 + len(POOLS)), hidden, 3)
        self.sides = nn.ModuleList(_convolution(hidden, hidden, 1) for _ in range(3))
        self.smooth = nn.ModuleList(_convolution(hidden, hidden, 3) for _ in range(3))
        self.fuse = _convolution(hidden * 4, hidden, 3)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, width, h, w], or [B, 4, width, h, w] -> [B, hidden, 4 h, 4 w]."""
        several = maps.unbind(1) if maps.dim() == 5 else [maps] * LEVELS
        levels = [size(each) for size, each in zip(self.sizes, several, strict=True)]  # 4 h, 2 h, h, h / 2
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
