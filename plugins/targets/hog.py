"""Hidden patches are predicted as their histograms of oriented gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mae_pipe.api import Target, View, plugin


@plugin("hog")
class HogTarget(Target):
    """Predict histograms of oriented gradients (Dalal and Triggs 2005; MaskFeat, Wei et al. 2022); mean squared error.

    A patch is cut into cells; in each, the magnitudes of the gradients fall into bins of unsigned
    orientation, and the histogram is brought to length 1. Gradients are central differences of the whole
    image, 0 at its border: the values are scikit-image's ``hog`` with one cell a block and the norm "L2".
    Images are brought back to whole bytes first, so that level and upright edges stay exactly that.

    Options:
        orientations: bins from 0 to 180 degrees.
        cells: cells in a row and in a column of a patch; must divide its sides.
        colour: a histogram for each channel, as MaskFeat; else each pixel counts with its strongest channel.
    """

    edges: Tensor
    strokes: Tensor

    def __init__(self, *, view: View, orientations: int = 9, cells: int = 2, colour: bool = True) -> None:
        super().__init__()
        if orientations < 1 or cells < 1:
            raise ValueError(f"orientations and cells must be at least 1, got {orientations} and {cells}")
        if view.patch[0] % cells or view.patch[1] % cells:
            fits = [n for n in range(1, min(view.patch) + 1) if not (view.patch[0] % n or view.patch[1] % n)]
            raise ValueError(
                f"cells must divide the patch's {view.patch[0]} x {view.patch[1]} pixels ({fits}), got {cells}"
            )
        self.view, self.orientations, self.cells = view, orientations, cells
        self.cell = view.patch[0] // cells, view.patch[1] // cells
        self.channels = view.channels if colour else 1
        self.width = cells * cells * self.channels * orientations
        angles = torch.arange(1, orientations, dtype=torch.float64) * math.pi / orientations
        self.register_buffer("edges", torch.stack([angles.sin(), angles.cos()]).float(), persistent=False)
        self.register_buffer("strokes", self._strokes(), persistent=False)

    def truth(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            # On a CPU one image after the other, which its caches hold.
            parts = torch.split(images, 1) if images.device.type == "cpu" else (images,)
            found = [self._histograms((self.view.colours(part) * 255).round()) for part in parts]
            histograms = torch.cat(found)  # [B, ch, o, rows * cells, cols * cells]
        batch, grid, cells = len(images), self.view.grid, self.cells
        split = histograms.reshape(batch, -1, grid.rows, cells, grid.cols, cells)
        return split.permute(0, 2, 4, 3, 5, 1).reshape(batch, grid.size, self.width)

    def loss(self, prediction: Tensor, truth: Tensor) -> Tensor:
        return (prediction.float() - truth).square().mean(dim=-1)

    def picture(self, prediction: Tensor, images: Tensor) -> Tensor:
        batch, grid, cells = len(images), self.view.grid, self.cells
        split = prediction.float().reshape(batch, grid.rows, grid.cols, cells, cells, self.channels, self.orientations)
        bins = split.mean(5).clamp(min=0)  # [B, rows, cols, cells, cells, o]
        drawn = torch.einsum("brcijo,ohw->brihcjw", bins, self.strokes)  # [B, rows, cells, h, cols, cells, w]
        light = drawn.reshape(batch, 1, self.view.height, self.view.width)
        light = light / light.amax(dim=(2, 3), keepdim=True).clamp(min=1e-6)
        return self.view.normalised(light.expand(-1, self.view.channels, -1, -1))

    @property
    def caption(self) -> str:
        return "strokes along the edges: each cell's histogram of oriented gradients"

    def _histograms(self, colours: Tensor) -> Tensor:
        """[B, C, H, W] whole numbers to 255 -> [B, 1 or C, o, rows of cells, columns of cells], each of length 1."""
        down, across = torch.zeros_like(colours), torch.zeros_like(colours)
        down[..., 1:-1, :] = colours[..., 2:, :] - colours[..., :-2, :]
        across[..., :, 1:-1] = colours[..., :, 2:] - colours[..., :, :-2]
        magnitude = torch.hypot(down, across)
        if self.channels == 1:
            strongest = magnitude.argmax(dim=1, keepdim=True)
            down, across, magnitude = (part.gather(1, strongest) for part in (down, across, magnitude))
        # Into the upper half plane, then count the edges of bins that lie before: no arc tangent, no rounding at 0.
        turn = torch.where((down < 0) | ((down == 0) & (across < 0)), -1.0, 1.0)
        down, across = down * turn, across * turn
        pool = torch.nn.functional.avg_pool2d
        beyond = [pool(magnitude, self.cell)]  # of all orientations, then of those from each edge on
        for sine, cosine in self.edges.T:
            beyond.append(pool(torch.where(down * cosine >= across * sine, magnitude, 0.0), self.cell))
        totals = torch.stack(beyond, dim=2).flatten(0, 1)  # [B ch, o, ...]
        means = totals - torch.cat([totals[:, 1:], torch.zeros_like(totals[:, :1])], dim=1)
        means = means / (means.square().sum(dim=1, keepdim=True) + 1e-10).sqrt()
        return means.reshape(len(colours), -1, *means.shape[1:])

    def _strokes(self) -> Tensor:
        """[o, h, w]: a line through the cell along the edge, at a right angle to the gradient."""
        high, wide = self.cell
        row = (torch.arange(high) - (high - 1) / 2)[:, None]
        col = (torch.arange(wide) - (wide - 1) / 2)[None]
        middle = (torch.arange(self.orientations) + 0.5) * math.pi / self.orientations
        distance = (row * middle.sin()[:, None, None] + col * middle.cos()[:, None, None]).abs()
        reach = (row.square() + col.square()).sqrt() <= min(high, wide) / 2
        return (1 - distance).clamp(min=0) * reach
