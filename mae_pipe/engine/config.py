"""A recipe -> DeepSpeed's own configuration."""

from __future__ import annotations

from typing import Any

import torch

from mae_pipe.engine import known
from mae_pipe.engine.library import can_read_from_drives, computes_in_float16
from mae_pipe.engine_tables import EngineChoice
from mae_pipe.errors import RecipeError
from mae_pipe.recipe import Recipe


def require(recipe: Recipe, world: int = 1) -> None:
    """Refuse an engine that this machine cannot run, or that DeepSpeed would pass over.

    Raises:
        RecipeError: in a sentence.
    """
    choice = recipe.engine
    known.require(choice.deepspeed)
    if choice.precision == "fp16" and not computes_in_float16():
        raise RecipeError('engine.precision "fp16" is not for this processor; set it to "bf16", or use a GPU')
    for key in ("quantized_weights", "quantized_gradients"):
        if getattr(choice, key) and not torch.cuda.is_available():
            raise RecipeError(f"engine.{key} needs a GPU, and there is none here; set it to false")
    if world % choice.hierarchical_partition:
        raise RecipeError(
            f"engine.hierarchical_partition {choice.hierarchical_partition} must divide the {world} processes of a job"
        )
    if choice.nvme_path is not None and not can_read_from_drives():
        raise RecipeError(
            'engine.offload_optimizer and offload_parameters "nvme" need libaio with its headers, from which DeepSpeed '
            'compiles its async_io; install them (Debian: libaio-dev), or choose "cpu"'
        )


def config_of(recipe: Recipe, micro_batch: int) -> dict[str, Any]:
    """DeepSpeed's own configuration, with the recipe's raw table laid over it."""
    choice = recipe.engine
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # the loop steps; see facts on silently lost micro-batches
        "gradient_clipping": recipe.optimizer.clip,
        "zero_optimization": _zero(choice),
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,  # SGD and LARS; tests/test_lars.py tests them
        "steps_per_print": 10**9,
    }
    if choice.precision != "fp32":
        config[choice.precision] = {"enabled": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}  # 256 micro-batches: error 1.4e-3, in bf16 1.5e-2
        config["communication_data_type"] = "fp32" if choice.reduce_dtype == "fp32" else choice.precision
    if choice.precision == "fp16":
        config["fp16"]["initial_scale_power"] = choice.initial_scale
    return _laid_over(config, choice.deepspeed)


def _zero(choice: EngineChoice) -> dict[str, Any]:
    zero = {
        "stage": choice.zero,
        "overlap_comm": choice.overlap_comm,
        "contiguous_gradients": choice.contiguous_gradients,
        "stage3_param_persistence_threshold": choice.persistence_threshold,
        "stage3_prefetch_bucket_size": choice.prefetch_bucket,
        "reduce_bucket_size": choice.reduce_bucket,
        "allgather_bucket_size": choice.gather_bucket,
        "zero_hpz_partition_size": choice.hierarchical_partition,
        "zero_quantized_weights": choice.quantized_weights,
        "zero_quantized_gradients": choice.quantized_gradients,
        "offload_optimizer": _offload(choice.offload_optimizer, choice.nvme_path),
        "offload_param": _offload(choice.offload_parameters, choice.nvme_path),
    }
    return {key: value for key, value in zero.items() if value is not None}


def _offload(place: str, nvme_path: str | None) -> dict[str, Any] | None:
    if place == "none":
        return None
    pinned = torch.cuda.is_available()  # page-locked memory is for copies to a GPU
    return {"device": place, "pin_memory": pinned, **({"nvme_path": nvme_path} if place == "nvme" else {})}


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both tables in one; where both have a value, that of ``above``."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _laid_over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
