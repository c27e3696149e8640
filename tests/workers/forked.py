"""Ranks forked from a process that has imported all and begun nothing: a job in a second instead of ten.

python -m tests.workers.forked RANKS MODULE ARGUMENT...    the main function of a worker in so many ranks
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from typing import Any

import torch
import torch.distributed as dist

from mae_pipe.engine.library import deepspeed


def start(world: int, work: Callable[..., Any], *arguments: Any) -> list[ForkProcess]:
    """Begin ``work(*arguments)`` in so many ranks, which know their places as under torchrun."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=_rank, args=(rank, world, port, work, arguments), daemon=True) for rank in range(world)
    ]
    for process in ranks:
        process.start()
    return ranks


def end(ranks: list[ForkProcess], seconds: float = 600) -> list[int | None]:
    """Wait for all; their exit codes."""
    for process in ranks:
        process.join(seconds)
    return [process.exitcode for process in ranks]


def _rank(rank: int, world: int, port: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    work(*arguments)
    if dist.is_initialized():
        dist.destroy_process_group()


def main() -> None:
    ranks, module, *arguments = sys.argv[1:]
    worker = importlib.import_module(module)
    deepspeed()
    sys.argv = [module, *arguments]
    if any(codes := end(start(int(ranks), worker.main), 1700)):
        sys.exit(f"the ranks ended with {codes}")


if __name__ == "__main__":
    main()
