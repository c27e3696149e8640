"""Colours of views, changed as BYOL, MoCo v3 and DINO do: batched, on the device where the images are.

The order is BYOL's (Grill et al. 2020): jitter, no colours, blur, solarize. A view's flip came before, with its crop.
Every image has its own factors, which its position and the view's number decide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.v2 import functional as operations

from mae_pipe.data import jitter
from mae_pipe.data.layout import Numbers
from mae_pipe.seeding import key, uniforms
from mae_pipe.views import Crop

AT_ONCE = 1 << 18  # numbers that a core's cache holds a few times over: on a CPU more at once is slower
KERNEL = 0.1  # of a side
MIDDLE = 0.5  # from here on solarizing inverts


class Drawn(NamedTuple):
    """What happens to one view of every image; on the host, as it decides what is launched.

    Attributes:
        orders: [B, 4] of brightness, contrast, saturation and hue (0 to 3).
        factors: [B, 4] float32 of these, as torchvision's; hue's is a share of the circle.
        sigma: [B] float32 of the blur, pixels.
        jittered, grey, blurred, solarized: [B] bool.
    """

    orders: Tensor
    factors: Tensor
    sigma: Tensor
    jittered: Tensor
    grey: Tensor
    blurred: Tensor
    solarized: Tensor


def drawn(view: Crop, number: int, seed: int, positions: Numbers) -> Drawn:
    """For the view of that number, of images at [B] positions."""
    orders, factors = jitter.draw(key(seed, f"colours/jitter/{number}"), positions, view.jitter)
    u = torch.from_numpy(uniforms(key(seed, f"colours/{number}"), positions, 5))  # [B, 5]
    low, high = view.sigma
    shares = view.jitter_share, view.grey, view.blur, view.solarize
    chosen = (u[:, place] < share for place, share in enumerate(shares))
    return Drawn(
        torch.from_numpy(orders), torch.from_numpy(factors).float(), (low + (high - low) * u[:, 4]).float(), *chosen
    )


def changed(images: Tensor, view: Crop, how: Drawn) -> Tensor:
    """Change [B, C, h, w] float32 in [0, 1] in their place; C is 3, or 1: that has neither saturation nor hue."""
    colour = images.shape[1] > 1
    for turn in how.orders.unbind(1):
        for operation, change in enumerate(JITTER if colour else JITTER[:SATURATION]):
            if view.jitter[operation]:
                _only(images, how.jittered & (turn == operation), change, how.factors[:, operation])
    if colour:
        _only(images, how.grey, lambda some: operations.rgb_to_grayscale(some, num_output_channels=3))
    _only(images, how.blurred, _blurred, how.sigma)
    _only(images, how.solarized, lambda some: operations.solarize(some, MIDDLE))
    return images


def _only(images: Tensor, mask: Tensor, change: Callable[..., Tensor], *given: Tensor) -> None:
    """``change`` some images, with what is ``given`` for each of them as [n, 1, 1, 1].

    The mask lies on the host and indices are sent, so a GPU's queue is never waited for.
    """
    rows = mask.nonzero()[:, 0]
    most = max(1, AT_ONCE // images[0].numel()) if images.device.type == "cpu" else len(images)
    for first in range(0, len(rows), most):
        some = rows[first : first + most]
        there = some.to(images.device, non_blocking=True)
        values = (one[some].view(-1, 1, 1, 1).to(images.device, non_blocking=True) for one in given)
        images.index_copy_(0, there, change(images.index_select(0, there), *values))


def _brighter(images: Tensor, factors: Tensor) -> Tensor:
    return images.mul_(factors).clamp_(0, 1)


def _contrasted(images: Tensor, factors: Tensor) -> Tensor:
    # In float64: how a sum is parted depends on how many images there are.
    middle = _grey(images).mean(dim=(1, 2, 3), keepdim=True, dtype=torch.float64).float()
    return images.mul_(factors).addcmul_(middle, 1 - factors).clamp_(0, 1)


def _saturated(images: Tensor, factors: Tensor) -> Tensor:
    grey = _grey(images)
    return images.mul_(factors).addcmul_(grey, 1 - factors).clamp_(0, 1)


def _grey(images: Tensor) -> Tensor:
    return operations.rgb_to_grayscale(images) if images.shape[1] == 3 else images


def _turned(images: Tensor, shares: Tensor) -> Tensor:
    """Every hue turned by a share of the circle; largest and smallest of a pixel's colours stay what they are.

    A colour lies below the largest by a share of their distance, which is a trapezium in hue.
    """
    red, green, blue = (images.narrow(1, channel, 1) for channel in range(3))
    most, least = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    spread = most - least
    divisor = spread.clamp_min(1e-20)  # where there is no colour, what it divides is 0
    # In sixths of the circle: red at 0, green at 2, blue at 4. On a CPU ``lerp`` by 0 or 1 is faster than ``where``.
    other = torch.lerp((blue - red).div_(divisor).add_(2), (red - green).div_(divisor).add_(4), (most - green).sign_())
    hue = torch.lerp((green - blue).div_(divisor), other, (most - red).sign_())
    hue.add_(6 * shares).remainder_(6)
    below = ((hue - 3).abs_().neg_().add_(2), (hue - 2).abs_().sub_(1), (hue - 4).abs_().sub_(1))
    return torch.cat([most - share.clamp_(0, 1).mul_(spread) for share in below], dim=1)


def _blurred(images: Tensor, sigma: Tensor) -> Tensor:
    return _along(_along(images, 3, sigma), 2, sigma)


def _along(images: Tensor, axis: int, sigma: Tensor) -> Tensor:
    """Each image weighted by its own Gaussian along one axis, mirrored at the ends.

    By sums of shifted images: convolutions would be rounded to TensorFloat-32 or to bfloat16 where a GPU's are.
    """
    side = images.shape[axis]
    radius = taps(side) // 2
    places = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.exp(-0.5 * (places / sigma.double()) ** 2)  # [n, 1, 1, taps]
    weights = (weights / weights.sum(dim=3, keepdim=True)).float()
    padded = pad(images, (radius, radius, 0, 0) if axis == 3 else (0, 0, radius, radius), mode="reflect")
    made = torch.zeros_like(images)
    for place, weight in enumerate(weights.unbind(3)):
        made.addcmul_(padded.narrow(axis, place, side), weight[..., None])
    return made


def taps(side: int) -> int:
    """Pixels that a blur reaches over: a tenth of the side, odd; 23 of 224, as BYOL and SimCLR have it."""
    return max(3, int(KERNEL * side) | 1)


SATURATION = 2
JITTER = (_brighter, _contrasted, _saturated, _turned)
