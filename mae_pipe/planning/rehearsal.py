"""``mae-pipe pretrain --dry-run``: what the run at hand would take on this machine; nothing is written."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from mae_pipe.catalog import Catalog
from mae_pipe.data.address import is_url
from mae_pipe.data.manifest import Manifest
from mae_pipe.errors import DataError
from mae_pipe.machine import available_memory
from mae_pipe.planning.forecast import Forecast
from mae_pipe.planning.machines import GB, Machines, here
from mae_pipe.planning.show import shown
from mae_pipe.recipe import Pretrain


def this_machine(processes: int) -> Machines:
    """Its GPUs, or so many processes on its processor."""
    if not torch.cuda.is_available():
        return here(processes)
    memory = torch.cuda.get_device_properties(0).total_memory / GB
    return Machines(gpus=processes, memory=round(memory, 1), host=round(available_memory() / GB, 1))


def show(recipe: Pretrain, shards: Path | str, split: str, *, processes: int, catalog: Catalog) -> None:
    """Print the forecast of ``recipe`` on ``shards``, which must lie here."""
    if is_url(str(shards)):
        raise DataError(f"--dry-run fetches nothing, and {shards} lies elsewhere; give `mae-pipe plan` --images")
    found = Manifest.load(Path(shards)).split(split)
    size = sum(shard.bytes for shard in found.shards) / max(1, found.images)
    forecast = Forecast(recipe, catalog, this_machine(processes), images=found.images, image=size)
    Console(width=None if Console().is_terminal else 120).print(shown(forecast))
