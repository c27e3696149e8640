"""Where this process stands in a job, however it was launched, and ``--nproc``."""

from __future__ import annotations

import logging
import os
import re
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from mae_pipe.errors import RunError

TIMEOUT = timedelta(minutes=10)  # for one collective: a lost rank ends the job instead of hanging it
SLURM_PORT = 29500


@dataclass(frozen=True)
class Place:
    """One process of a job."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0


def place(environment: dict[str, str] | None = None) -> Place:
    """This process's place, from what torchrun, the deepspeed launcher or srun have set; alone otherwise."""
    env = os.environ if environment is None else environment
    if "RANK" in env and "WORLD_SIZE" in env:
        return Place(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", "0")))
    # srun sets SLURM_PROCID; a plain `python` inside an allocation has SLURM_NTASKS but no step.
    if "SLURM_PROCID" in env and "SLURM_STEP_ID" in env and int(env.get("SLURM_NTASKS", "1")) > 1:
        return Place(int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"]), int(env.get("SLURM_LOCALID", "0")))
    return Place()


def first_host(nodes: str) -> str:
    """The first host of a SLURM node list: ``gpu[003-010,14],x`` -> ``gpu003``."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", nodes)
    if match is None:
        raise RunError(f"SLURM_NODELIST is {nodes!r}, not a list of hosts; set MASTER_ADDR to the first node's name")
    return match[1] + (match[2] or "")


def join() -> Place:
    """Enter the job's process group; a process without a launcher makes a group of one.

    Needs no environment variable and no port when alone. Idempotent.
    """
    import torch
    import torch.distributed as dist

    here = place()
    os.environ.setdefault("LOCAL_RANK", str(here.local_rank))  # DeepSpeed asks for it
    if dist.is_initialized():
        return here
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if here.world == 1:
        dist.init_process_group(
            backend, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1, timeout=TIMEOUT
        )
        return here
    if "MASTER_ADDR" not in os.environ:
        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "127.0.0.1")
        os.environ["MASTER_ADDR"] = first_host(nodes)
    os.environ.setdefault("MASTER_PORT", str(SLURM_PORT))
    os.environ.setdefault("RANK", str(here.rank))
    os.environ.setdefault("WORLD_SIZE", str(here.world))
    try:
        dist.init_process_group(backend, rank=here.rank, world_size=here.world, timeout=TIMEOUT)
    except (RuntimeError, dist.DistError) as error:
        raise RunError(
            f"rank {here.rank} of {here.world} could not reach the others at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']}: {str(error).splitlines()[0]}; check that all ranks were started"
        ) from error
    return here


def spawn(processes: int, arguments: list[str]) -> int:
    """Run ``mae-pipe ARGUMENTS`` in so many processes on this machine (torchrun); the first failure's exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # A failed rank has said its sentence; torchrun's own report would bury it.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    settings: dict[str, Any] = {
        "min_nodes": 1,
        "max_nodes": 1,
        "nproc_per_node": processes,
        "rdzv_backend": "c10d",
        "rdzv_endpoint": "localhost:0",
        "run_id": f"mae-pipe-{os.getpid()}",
        "max_restarts": 0,
        "monitor_interval": 0.1,
    }
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    try:
        elastic_launch(LaunchConfig(**settings), sys.executable)("-m", "mae_pipe", *arguments)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def agree(flag: bool, device: Any) -> bool:
    """Whether any rank says so; all ranks must ask."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return flag
    said = torch.tensor(int(flag), device=device)
    dist.all_reduce(said, op=dist.ReduceOp.MAX)
    return bool(said.item())
