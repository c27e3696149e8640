"""DeepSpeed, imported so that it is quiet and compiles nothing."""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from contextlib import suppress
from typing import Any

import torch


def deepspeed() -> Any:
    """DeepSpeed, quiet, for the accelerator that torch has."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed as library
        import deepspeed.ops
        from deepspeed.runtime import bf16_optimizer

        _without_compiling_muon()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed calls collectives by names that torch is about to change; nothing that a user could mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    # It collects all garbage and prints the memory, twice for every group of parameters: layer decay makes dozens.
    bf16_optimizer.see_memory_usage = lambda message, force=False: None
    if not torch.cuda.is_available():
        # Its only CPU extension serves inference; compiling it would take a minute.
        library.ops.__compatible_ops__ = {}
    return library


def _without_compiling_muon() -> None:
    """Import DeepSpeed's Muon with plain functions.

    It asks of every optimizer whether it is Muon, and that import has torch's compiler loaded, which takes 2 s in every
    process; nothing here steps by Muon.
    """
    from deepspeed.runtime import compiler

    kept, compiler.compile = compiler.compile, lambda *arguments, **options: lambda function: function
    try:
        with suppress(ImportError):  # a DeepSpeed that has none
            importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = kept


def can_read_from_drives() -> bool:
    """Whether DeepSpeed's async_io, which it compiles against libaio, can be had here."""
    deepspeed()
    from deepspeed.ops.op_builder import AsyncIOBuilder

    return bool(AsyncIOBuilder().is_compatible(verbose=False))


def computes_in_float16() -> bool:
    """Whether DeepSpeed holds this machine's device for one that computes in float16."""
    deepspeed()
    from deepspeed.accelerator import get_accelerator

    return bool(get_accelerator().is_fp16_supported())
