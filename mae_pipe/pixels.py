"""Pixels become images: uint8 to normalised float32, on the device where they are used."""

from __future__ import annotations

import torch
from torch import Tensor

Channels = tuple[float, ...]  # one number a channel, of values in [0, 1]


def normalise(pixels: Tensor, mean: Channels, std: Channels) -> Tensor:
    """[B, C, H, W] uint8 -> float32: (pixels / 255 - mean) / std.

    ``mean`` and ``std`` go to the device as arguments of its kernels, so nothing is copied and nothing waits.
    """
    images = pixels.to(torch.float32)
    images = images.clone() if images is pixels else images
    return normalise_(images, mean, std, white=255)


def normalise_(images: Tensor, mean: Channels, std: Channels, *, white: float = 1) -> Tensor:
    """The same of [B, C, H, W] float32 from 0 to ``white``, in their place."""
    for channel, centre, spread in zip(images.unbind(1), mean, std, strict=True):
        channel.sub_(white * centre).div_(white * spread)
    return images


def pixels_of(images: Tensor, mean: Channels, std: Channels) -> Tensor:
    """[B, C, H, W] normalised float -> uint8: the inverse of ``normalise``, rounded and clipped."""
    pixels = images.detach().to(torch.float32, copy=True)
    for channel, centre, spread in zip(pixels.unbind(1), mean, std, strict=True):
        channel.mul_(255 * spread).add_(255 * centre)
    return pixels.round_().clamp_(0, 255).to(torch.uint8)
