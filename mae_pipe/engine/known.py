"""The keys of DeepSpeed's own configuration, and which of them a recipe may set.

DeepSpeed passes over keys that it does not know, so a wrong letter would switch off what it should have switched on.
"""

from __future__ import annotations

import typing
from typing import Any

from pydantic import BaseModel

from mae_pipe.engine.library import deepspeed
from mae_pipe.errors import RecipeError, closest

OURS = {  # keys of DeepSpeed that a recipe has under its own name
    "train_batch_size": "data.global_batch",
    "train_micro_batch_size_per_gpu": "data.micro_batch",
    "gradient_clipping": "optimizer.clip",
    "optimizer": "the table [optimizer]",
    "scheduler": "the table [schedule]",
    "activation_checkpointing": "engine.checkpoint_blocks",
    "torch_autocast": "engine.precision",
    "data_types.param_dtype": "engine.precision",
    "bf16.enabled": "engine.precision",
    "fp16.enabled": "engine.precision",
    "communication_data_type": "engine.reduce_dtype",
    "fp16.initial_scale_power": "engine.initial_scale",
    "zero_optimization.stage": "engine.zero",
    "zero_optimization.overlap_comm": "engine.overlap_comm",
    "zero_optimization.contiguous_gradients": "engine.contiguous_gradients",
    "zero_optimization.reduce_bucket_size": "engine.reduce_bucket",
    "zero_optimization.allgather_bucket_size": "engine.gather_bucket",
    "zero_optimization.zero_hpz_partition_size": "engine.hierarchical_partition",
    "zero_optimization.zero_quantized_weights": "engine.quantized_weights",
    "zero_optimization.zero_quantized_gradients": "engine.quantized_gradients",
    "zero_optimization.offload_optimizer.device": "engine.offload_optimizer",
    "zero_optimization.cpu_offload": "engine.offload_optimizer",
    "zero_optimization.offload_param.device": "engine.offload_parameters",
    "zero_optimization.cpu_offload_param": "engine.offload_parameters",
    "zero_optimization.offload_optimizer.nvme_path": "engine.nvme_path",
    "zero_optimization.offload_param.nvme_path": "engine.nvme_path",
    "zero_optimization.param_persistence_threshold": "engine.persistence_threshold",
    "zero_optimization.stage3_param_persistence_threshold": "engine.persistence_threshold",
    "zero_optimization.prefetch_bucket_size": "engine.prefetch_bucket",
    "zero_optimization.stage3_prefetch_bucket_size": "engine.prefetch_bucket",
    "flops_profiler": "engine.profile",
}
REFUSED = {  # keys that would break a run, or mean nothing to one
    "the loop of mae-pipe counts micro-batches itself": (
        "gradient_accumulation_steps",
        "managed_gradient_accumulation",
    ),
    "the loop of mae-pipe divides by the ranks, as a mean does": ("gradient_allreduce_op",),
    "mae-pipe writes its own checkpoints": (
        "checkpoint",
        "datastates_ckpt",
        "zero_optimization.elastic_checkpoint",
        "zero_optimization.load_from_fp32_weights",
        "zero_optimization.pipeline_loading_checkpoint",
    ),
    "engine.compile says it; DeepCompile wants another loop": ("compile",),
    "its name is bf16": ("bfloat16",),
    "mae-pipe's checkpoints and its guard want float32 master weights and checked gradients where they are": (
        "bf16.check_grad_overflow",
        "bf16.bf16_master_weights_and_grads",
        "bf16.bf16_optimizer_states",
        "fp16.fp16_master_weights_and_grads",
        "zero_optimization.offload_optimizer.super_offload",
        "zero_optimization.offload_optimizer.ratio",
        "zero_optimization.zenflow",
        "zero_optimization.compute_grad_norm",
    ),
    "DeepSpeed then says wrong places of weights, from which mae-pipe writes checkpoints": (
        "zero_optimization.round_robin_gradients",
    ),
    "DeepSpeed has it no more": ("zero_optimization.legacy_stage1",),
    "mae-pipe's guard looks for parameters that do not learn": ("zero_optimization.ignore_unused_parameters",),
    "which images come when is mae-pipe's": (
        "data_efficiency",
        "dataloader_drop_last",
    ),
    "it is for other models or another loop than mae-pipe's": (
        "sequence_parallel_size",
        "seq_parallel_communication_data_type",
        "tensor_parallel",
        "expert_parallel",
        "use_data_before_expert_parallelism",
        "pipeline",
        "hybrid_engine",
        "autotuning",
        "weight_quantization",
        "vocabulary_size",
    ),
    "optimizer.name says which there are": (
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
    ),
    "mae-pipe's sums of gradients are in float32, where it changes nothing": (
        "prescale_gradients",
        "gradient_predivide_factor",
    ),
}
VALUES = (  # keys outside of tables
    "disable_allgather",
    "disable_python_gc",
    "dump_state",
    "log_level",
    "memory_breakdown",
    "steps_per_print",
    "wall_clock_breakdown",
)
Keys = dict[str, Any]  # of a table: the keys of a table in it, or None for a value


def require(table: dict[str, Any]) -> None:
    """Refuse a raw table with a key that DeepSpeed does not know or that a recipe should not set.

    Raises:
        RecipeError: in a sentence.
    """
    if table:
        _require(table, known(), ())


def known() -> Keys:
    """Every key of DeepSpeed's configuration, from its own models and constants."""
    deepspeed()
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    plain = {key for key in (*OURS, *_refused()) if "." not in key}
    return {
        **dict.fromkeys((*VALUES, *plain)),
        "zero_optimization": _of(DeepSpeedZeroConfig),
        "bf16": _of(DeepSpeedBF16Config),
        "fp16": _of(DeepSpeedFP16Config),
        "comms_logger": _of(CommsLoggerConfig),
        "tensorboard": _of(TensorBoardConfig),
        "wandb": _of(WandbConfig),
        "csv_monitor": _of(CSVConfig),
        "comet": _of(CometConfig),
        "timers": {"throughput": _of(DeepSpeedThroughputTimerConfig)},
        "aio": dict.fromkeys(AIO_DEFAULT_DICT),
        "data_types": dict.fromkeys(("grad_accum_dtype", "param_dtype", "buffer_dtype", "keep_in_fp32_modules")),
    }


def _of(model: type[BaseModel]) -> Keys:
    """The keys of a pydantic model; DeepSpeed takes a field by its name and by its alias."""
    keys: Keys = {}
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *typing.get_args(field.annotation)]
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        for written in {name, field.alias or name}:
            keys[written] = _of(inner) if inner else None
    return keys


def _require(table: dict[str, Any], keys: Keys, before: tuple[str, ...]) -> None:
    for key, value in table.items():
        place = ".".join((*before, key))
        where = f"the recipe's engine.deepspeed.{place}"
        if place in OURS:
            raise RecipeError(f"{where} is called {OURS[place]} in a recipe; set that")
        if place in _refused():
            raise RecipeError(f"{where} cannot be set: {_refused()[place]}")
        if key not in keys:
            raise RecipeError(f"{where} is no key of DeepSpeed's{closest(key, keys)}")
        inner = keys[key]
        if inner is not None and not isinstance(value, dict):
            raise RecipeError(f"{where} is a table with {', '.join(sorted(inner))}, not a value; got {value!r}")
        if inner is None and isinstance(value, dict):
            raise RecipeError(f"{where} is a value, not a table; got {value!r}")
        if inner is not None:
            _require(value, inner, (*before, key))


def _refused() -> dict[str, str]:
    return {key: reason for reason, keys in REFUSED.items() for key in keys}
