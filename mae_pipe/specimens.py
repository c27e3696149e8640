"""What a plugin does, drawn: the patches that a mask sampler hides, at several ratios and grids."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mae_pipe.contracts import Grid, MaskSampler
from mae_pipe.disk import write_whole
from mae_pipe.masking import Mask, visible_count
from mae_pipe.rng import Rng
from mae_pipe.seeding import key

GRIDS = (Grid(14, 14), Grid(8, 20))
RATIOS = (0.5, 0.75, 0.9)
SHOWN = 6  # masks a row
COUNTED = 1000  # masks for "how often"
PATCH = 8  # pixels
GAP, MARGIN, LABEL, HEADER, LINE = 8, 20, 74, 24, 18
PAPER, INK, QUIET, HIDDEN = (255, 255, 255), (24, 28, 36), (106, 114, 128), (214, 217, 222)
NEVER, ALWAYS = np.array((247, 244, 236), float), np.array((20, 58, 112), float)  # colours of a share of 0 and 1


def save_mask(sampler: MaskSampler, title: str, path: Path, *, seed: int = 0) -> None:
    """Write the picture of ``mask`` as a PNG."""
    buffer = io.BytesIO()
    mask(sampler, title, seed=seed).save(buffer, "PNG")
    write_whole(path, buffer.getvalue())


def mask(sampler: MaskSampler, title: str, *, seed: int = 0) -> Image.Image:
    """One row a ratio, for each grid: some masks, and how often each patch is hidden in many."""
    width = 2 * MARGIN + LABEL + max((SHOWN + 1) * (PATCH * grid.cols + GAP) for grid in GRIDS)
    lines = textwrap.wrap(title, width // 8)
    top = MARGIN + LINE * len(lines) + GAP
    height = top + sum(HEADER + len(RATIOS) * (PATCH * grid.rows + LINE) + GAP for grid in GRIDS) + MARGIN
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        pen.text((MARGIN, MARGIN + LINE * number), line, fill=INK, font=_font(14))
    for grid in GRIDS:
        _section(page, pen, top, sampler, grid, seed)
        top += HEADER + len(RATIOS) * (PATCH * grid.rows + LINE) + GAP
    return page


def _section(
    page: Image.Image, pen: ImageDraw.ImageDraw, top: int, sampler: MaskSampler, grid: Grid, seed: int
) -> None:
    """One grid's header and rows."""
    wide, high = PATCH * grid.cols, PATCH * grid.rows
    left, last = MARGIN + LABEL, MARGIN + LABEL + SHOWN * (wide + GAP)
    base = top + HEADER - 7
    pen.text((left, base), f"{grid.rows} x {grid.cols} patches", fill=INK, font=_font(13), anchor="ls")
    pen.text((last, base), f"hidden in {COUNTED:,} masks", fill=QUIET, font=_font(12), anchor="ls")
    scores = scores_of(sampler, grid, COUNTED, seed)
    pictures = (255 * landscapes(grid, SHOWN)).permute(0, 2, 3, 1).to(torch.uint8).numpy()
    for row, ratio in enumerate(RATIOS):
        upper = top + HEADER + row * (high + LINE)
        hidden = Mask.from_scores(scores, ratio).as_map().view(-1, grid.rows, grid.cols)
        count = grid.size - visible_count(grid.size, ratio)
        pen.text((MARGIN, upper + high / 2 - 8), f"{ratio:g}", fill=INK, font=_font(14), anchor="lm")
        pen.text((MARGIN, upper + high / 2 + 9), f"{count} of {grid.size}", fill=QUIET, font=_font(11), anchor="lm")
        for number in range(SHOWN):
            tile = np.where(_enlarged(hidden[number].numpy())[..., None], np.array(HIDDEN, np.uint8), pictures[number])
            page.paste(Image.fromarray(tile), (left + number * (wide + GAP), upper))
        often = hidden.float().mean(0).numpy()
        colours = NEVER + (ALWAYS - NEVER) * _enlarged(often)[..., None]
        page.paste(Image.fromarray(colours.round().astype(np.uint8)), (last, upper))
        said = f"{often.min():.2f} to {often.max():.2f}"
        pen.text((last + wide / 2, upper + high + 2), said, fill=QUIET, font=_font(11), anchor="mt")


def scores_of(sampler: MaskSampler, grid: Grid, images: int, seed: int) -> Tensor:
    """[images, N]: a sampler's, for drawn landscapes."""
    found = []
    for positions in torch.split(torch.arange(images), 100):
        pixels = (landscapes(grid, len(positions)) - 0.5) / 0.25
        found.append(sampler.scores(pixels, grid, Rng(key(seed, "mask"), positions)))
    return torch.cat(found)


def landscapes(grid: Grid, images: int) -> Tensor:
    """[B, 3, H, W] in [0, 1]: a sky, a hill and a sun, another in each image."""
    rows, cols = PATCH * grid.rows, PATCH * grid.cols
    down = torch.linspace(0, 1, rows)[:, None]
    across = torch.linspace(0, 1, cols)
    turn = torch.arange(images)[:, None, None] * 2.399963  # the golden angle
    sky = torch.stack([0.45 + 0.3 * down, 0.65 + 0.2 * down, 0.95 - 0.1 * down]).expand(3, rows, cols)
    hill = (down > 0.65 + 0.12 * torch.sin(6.3 * across + turn)).float()  # [B, H, W]
    far = (down - 0.3) ** 2 * (rows / cols) ** 2 + (across - 0.5 - 0.35 * torch.sin(turn)) ** 2
    sun = (far < 0.012).float()
    ground, light = torch.tensor([0.28, 0.5, 0.3]), torch.tensor([1.0, 0.85, 0.4])
    with_sun = sky + sun[:, None] * (light[:, None, None] - sky)
    return (with_sun + hill[:, None] * (ground[:, None, None] - with_sun)).clamp(0, 1)


def _enlarged(cells: NDArray[np.generic]) -> NDArray[np.generic]:
    """[rows, cols] -> [H, W]: each patch as its pixels."""
    return np.repeat(np.repeat(cells, PATCH, axis=0), PATCH, axis=1)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
