"""Where this process stands in a job, however it was launched."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import timedelta

from mae_pipe import watchdog
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


def launched() -> bool:
    """Whether a launcher has started this process."""
    return "RANK" in os.environ or place().world > 1


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
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "nccl"
        torch.cuda.set_device(here.local_rank)  # before the first collective, or all ranks take the first card
    if here.world == 1:
        dist.init_process_group(
            backend, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1, timeout=TIMEOUT
        )
        return here
    if "MASTER_ADDR" not in os.environ:
        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "127.0.0.1")
        os.environ["MASTER_ADDR"] = first_host(nodes)
    job = int(os.environ.get("SLURM_JOB_ID", "0"))  # two jobs on one node want two ports
    os.environ.setdefault("MASTER_PORT", str(SLURM_PORT + job % 1000))
    os.environ.setdefault("RANK", str(here.rank))
    os.environ.setdefault("WORLD_SIZE", str(here.world))
    try:
        dist.init_process_group(backend, rank=here.rank, world_size=here.world, timeout=TIMEOUT)
        watchdog.begin(here.rank, here.world)
    except (RuntimeError, dist.DistError) as error:
        raise RunError(
            f"rank {here.rank} of {here.world} could not reach the others at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']}: {str(error).splitlines()[0]}; check that all ranks were started"
        ) from error
    return here


def meet() -> None:
    """Wait until every rank is here."""
    import torch.distributed as dist

    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()
