"""Checks of mask samplers."""

from __future__ import annotations

import torch
from torch import Tensor

from mae_pipe.contracts import Grid, MaskSampler
from mae_pipe.masking import Mask
from mae_pipe.rng import Rng
from mae_pipe.testing import surroundings
from mae_pipe.testing.subject import Subject, finite, hold, images, near, no_global_randomness, require, same_shape

GRIDS = (Grid(1, 1), Grid(4, 4), Grid(7, 7), Grid(14, 14), Grid(3, 5), Grid(16, 6))
RATIOS = (0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.8, 0.9, 0.95)
IMAGES = 6
PATCH = 4  # pixels


def _pixels(grid: Grid, count: int = IMAGES) -> Tensor:
    return images(count, 3, PATCH * grid.rows, PATCH * grid.cols)


def _rng(*positions: int, device: torch.device | None = None) -> Rng:
    return Rng(7, torch.tensor(positions, device=device))


def _scores(sampler: MaskSampler, grid: Grid, pixels: Tensor | None = None) -> Tensor:
    return sampler.scores(_pixels(grid) if pixels is None else pixels, grid, _rng(*range(IMAGES)))


def _where(sampler: MaskSampler, grid: Grid) -> str:
    return f"{type(sampler).__name__}.scores on a {grid.rows} x {grid.cols} grid"


def shapes(subject: Subject) -> None:
    """Scores are [B, N] float32 and finite on grids of any shape."""
    sampler = subject.make()
    for grid in GRIDS:
        scores = _scores(sampler, grid)
        same_shape(_where(sampler, grid), scores, (IMAGES, grid.size))
        finite(_where(sampler, grid), scores)


def leaves_images_alone(subject: Subject) -> None:
    """The images are as before."""
    sampler = subject.make()
    for grid in GRIDS[1:3]:
        pixels = _pixels(grid)
        _scores(sampler, grid, pixels)
        alike = torch.equal(pixels, _pixels(grid))
        require(alike, f"{_where(sampler, grid)} changed the images; it must leave them as they are")


def ignores_global_randomness(subject: Subject) -> None:
    """Nothing is drawn from the generators of PyTorch, NumPy and Python."""
    sampler = subject.make()
    for grid in GRIDS:
        with no_global_randomness(_where(sampler, grid)):
            _scores(sampler, grid)


def repeats_itself(subject: Subject) -> None:
    """The same positions give the same scores again, also from a sampler built anew."""
    sampler = subject.make()
    for grid in GRIDS:
        scores = _scores(sampler, grid)
        where = f"{_where(sampler, grid)} gave other scores for the same images and positions"
        require(torch.equal(scores, _scores(sampler, grid)), where)
        require(torch.equal(scores, _scores(subject.make(), grid)), f"{where} when it was built again")


def depends_on_its_image_alone(subject: Subject) -> None:
    """An image's scores do not depend on the other images of the batch."""
    sampler = subject.make()
    for grid in GRIDS:
        pixels = _pixels(grid)
        part = sampler.scores(pixels[2:4], grid, _rng(2, 3))
        require(
            torch.equal(_scores(sampler, grid, pixels)[2:4], part),
            f"{_where(sampler, grid)} depends on the other images of the batch; "
            "the mask would change with the number of ranks",
        )


def honours_the_ratio(subject: Subject) -> str:
    """At every ratio exactly N - int(N (1 - ratio)) patches are hidden."""
    sampler = subject.make()
    tried = 0
    for grid in GRIDS:
        scores = _scores(sampler, grid)
        finite(_where(sampler, grid), scores)
        for ratio in RATIOS:
            if int(grid.size * (1 - ratio)) < 1:
                continue
            hidden = Mask.from_scores(scores, ratio).as_map().sum(1).tolist()
            wanted = grid.size - int(grid.size * (1 - ratio))
            said = f"{_where(sampler, grid)} hides {hidden} patches at ratio {ratio}, expected {wanted} of each image"
            require(hidden == [wanted] * IMAGES, said)
            tried += 1
    return f"exact at {tried} ratios and grids"


def follows_devices(subject: Subject) -> str:
    """Scores are on the images' device."""
    grid = GRIDS[1]

    def work(sampler: MaskSampler, device: torch.device) -> dict[str, Tensor]:
        pixels = torch.zeros(2, 3, 16, 16, device=device)
        return {"scores": sampler.scores(pixels, grid, _rng(0, 1, device=device))}

    sampler = subject.make()
    return surroundings.on_devices(_where(sampler, grid), sampler, work)


def is_bf16_safe(subject: Subject) -> None:
    """In bfloat16 and under autocast scores stay float32 and finite."""
    sampler = subject.make()
    for grid in GRIDS[1:3]:
        where = f"{_where(sampler, grid)} of bfloat16 images"
        finite(where, _scores(sampler, grid, _pixels(grid).bfloat16()))
        plain = _scores(sampler, grid)
        with torch.autocast("cpu", torch.bfloat16):
            scores = _scores(sampler, grid)
        finite(f"{_where(sampler, grid)} under autocast", scores)
        require(near(scores, plain, share=0.02), f"{_where(sampler, grid)} gives other scores under autocast")


def compiles(subject: Subject) -> None:
    """torch.compile takes it whole, without a graph break."""
    sampler, grid = subject.make(), GRIDS[1]

    def scores(pixels: Tensor, positions: Tensor) -> Tensor:
        return sampler.scores(pixels, grid, Rng(7, positions))  # type: ignore[no-any-return]

    surroundings.compiled(f"{type(sampler).__name__}.scores", scores, _pixels(grid), torch.arange(IMAGES))


CONTRACT = (
    shapes,
    leaves_images_alone,
    ignores_global_randomness,
    repeats_itself,
    depends_on_its_image_alone,
    honours_the_ratio,
)
SURROUNDINGS = (follows_devices, is_bf16_safe, compiles)


def check_mask_sampler(sampler: MaskSampler) -> None:
    """The contract of a sampler that is built; raises ``PluginError`` for the first check that fails."""
    hold(CONTRACT, Subject.built(sampler))
