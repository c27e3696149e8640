"""Random erasing (Zhong et al. 2020) as timm does it: one box of a normalised image becomes noise, pixel by pixel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mae_pipe.rng import Rng

TRIES = 10
AREA = (0.02, 1 / 3)  # least and most of the image's
RATIO = (0.3, 1 / 0.3)  # height / width; its logarithm is uniform


def erased(images: Tensor, rng: Rng, probability: float) -> Tensor:
    """[B, C, H, W] normalised -> a copy, with standard normal numbers in the boxes of ``boxes``."""
    size = images.shape[1:]
    inside = mask_of(boxes(rng, size[1], size[2], probability), size[1], size[2])  # [B, H, W]
    image, place = inside[:, None].expand_as(images).flatten(1).nonzero(as_tuple=True)
    changed = images.flatten(1).clone()
    changed[image, place] = rng.normal_at(image, place, size.numel()).to(images.dtype)
    return changed.view_as(images)


def boxes(rng: Rng, height: int, width: int, probability: float) -> Tensor:
    """[B, 4] int64: top, left, height, width of what is erased; 0 high where nothing is.

    Ten tries of an area in ``AREA`` and a log-uniform height/width in ``RATIO``, of which the first counts that is
    smaller than the image on both sides.
    """
    u = rng.uniform(2 * TRIES + 3).double()  # [B, 23]
    area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * u[:, :TRIES])  # [B, 10]
    low, high = map(math.log, RATIO)
    ratio = torch.exp(low + (high - low) * u[:, TRIES : 2 * TRIES])
    tried = torch.stack([(area * ratio).sqrt().round(), (area / ratio).sqrt().round()])  # [2, B, 10]
    fits = (tried[0] < height) & (tried[1] < width)
    first = fits.int().argmax(dim=1, keepdim=True)
    high_, wide = (one.gather(1, first)[:, 0] for one in tried)
    top = (u[:, -3] * (height - high_ + 1)).floor()
    left = (u[:, -2] * (width - wide + 1)).floor()
    chosen = fits.any(dim=1) & (u[:, -1] < probability)
    return (torch.stack([top, left, high_, wide], dim=1) * chosen[:, None]).long()


def mask_of(boxes: Tensor, height: int, width: int) -> Tensor:
    """[B, 4] -> [B, H, W] bool: True inside."""
    top, left, high, wide = boxes[:, :, None].unbind(1)  # [B, 1] each
    rows, cols = (torch.arange(side, device=boxes.device) for side in (height, width))
    return ((rows >= top) & (rows < top + high))[:, :, None] & ((cols >= left) & (cols < left + wide))[:, None, :]
