"""Batch norm and rows over all ranks, by one rank and by two that have half of the rows each.

Arguments: OUT, a folder; every rank writes what it found to "WORLD.RANK" in it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mae_pipe import launch
from mae_pipe.synced import SyncedBatchNorm, of_all_ranks
from tests.workers import forked

ROWS, WIDTH, STEPS = 12, 5, 3


def rows() -> Tensor:
    """[steps, ROWS, WIDTH], whose columns have means far from zero."""
    draw = torch.Generator().manual_seed(0)
    return torch.randn(STEPS, ROWS, WIDTH, generator=draw) * torch.rand(WIDTH, generator=draw) + torch.arange(WIDTH)


def weights() -> Tensor:
    """[ROWS, WIDTH] of the outputs in the loss: no row counts as another does."""
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))


def found_by(norm: nn.Module, mine: slice, ranks: int) -> dict[str, Tensor]:
    """Outputs, gradients (the mean over ranks, as an engine makes it) and state after some steps of these rows."""
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(torch.linspace(0.1, 0.5, WIDTH))
    for step in rows():
        given = step[mine].clone().requires_grad_()
        out = norm(given)
        norm.zero_grad()
        (out * weights()[mine]).square().mean().backward()
    assert given.grad is not None
    found = {"out": out.detach(), "rows": given.grad / ranks}
    for name, parameter in norm.named_parameters():
        assert parameter.grad is not None
        if ranks > 1:
            dist.all_reduce(parameter.grad)
        found[f"gradient {name}"] = parameter.grad / ranks
    found |= {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    return found | {"evaluated": norm.eval()(rows()[0, mine]).detach()}


def work(out: Path) -> None:
    """What a rank does."""
    here = launch.join()
    part = ROWS // here.world
    mine = slice(here.rank * part, (here.rank + 1) * part)
    found = found_by(SyncedBatchNorm(WIDTH), mine, here.world)
    shared, first = of_all_ranks(rows()[0, mine].requires_grad_())
    assert not shared.requires_grad
    torch.save(found | {"shared": shared, "first": torch.tensor(first)}, out / f"{here.world}.{here.rank}")


def main() -> None:
    for world in (1, 2):
        if any(codes := forked.end(forked.start(world, work, Path(sys.argv[1])), 60)):
            sys.exit(f"the ranks ended with {codes}")


if __name__ == "__main__":
    main()
