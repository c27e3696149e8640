"""The table ``[engine]`` of a recipe: how DeepSpeed runs the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, WrapValidator, model_validator

from mae_pipe.tables import Table

Place = Literal["none", "cpu", "nvme"]
Numbers = Annotated[int, Field(ge=1)]


def _one_to_three(value: Any, handler: Callable[[Any], Any]) -> Any:
    try:
        return handler(value)
    except ValidationError:
        if value == 0:
            raise ValueError(
                "stage 0 neither guards against gradients that are not finite nor gives their norm, and in bf16 its "
                "first step is wrong; stage 1 is as fast and is no more than that on one process"
            ) from None
        raise ValueError("expected ZeRO stage 1, 2 or 3") from None


class Profile(Table):
    """DeepSpeed's profiler of one forward pass: time and arithmetic of every module."""

    step: Annotated[int, Field(ge=0)] = 0  # in the process's step so and so, counted from 1; 0: in none
    file: str | None = None  # where it writes; the terminal if absent


class EngineChoice(Table):
    """How DeepSpeed runs the step."""

    zero: Annotated[Literal[1, 2, 3], WrapValidator(_one_to_three)] = 1  # ZeRO stage
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"  # bf16 and fp16 keep fp32 master weights and sums
    initial_scale: Annotated[int, Field(ge=0, le=24)] = 16  # fp16: the loss is first multiplied by 2 to this power
    checkpoint_blocks: Annotated[int, Field(ge=0)] = 0  # blocks whose activations are computed again, not kept
    compile: bool = False  # blocks through torch.compile
    offload_optimizer: Place = "none"  # where optimizer state and step are; nvme wants ZeRO 3
    offload_parameters: Place = "none"  # where ZeRO 3 keeps parameters that are not in use
    nvme_path: str | None = None  # a folder on the NVMe drive
    persistence_threshold: Annotated[int, Field(ge=0)] | None = None  # ZeRO 3: smaller parameters stay whole
    sharded_construction: bool = False  # ZeRO 3: no process ever holds the whole model
    reduce_bucket: Numbers | None = None  # numbers of gradients that are summed over ranks at once
    gather_bucket: Numbers | None = None  # ZeRO 1, 2: numbers of parameters that are gathered at once
    prefetch_bucket: Annotated[int, Field(ge=0)] | None = None  # ZeRO 3: numbers of parameters fetched ahead
    reduce_dtype: Literal["fp32", "precision"] = "fp32"  # gradients are summed over ranks in it
    overlap_comm: bool = False  # ZeRO 2, 3: gradients are summed while the backward pass goes on
    contiguous_gradients: bool = True  # ZeRO 2, 3: gradients are copied into one buffer as they come
    hierarchical_partition: Numbers = 1  # ZeRO 3: ranks that hold a second copy of the parameters together; ZeRO++
    quantized_weights: bool = False  # ZeRO 3: parameters are gathered in int8; ZeRO++
    quantized_gradients: bool = False  # ZeRO 3: gradients are summed in int4; ZeRO++
    profile: Profile = Profile()
    deepspeed: dict[str, Any] = Field(default={})  # DeepSpeed's own configuration, laid over ours

    @model_validator(mode="after")
    def _fits(self) -> EngineChoice:
        for key, off in NEEDS_STAGE_3.items():
            if self.zero != 3 and getattr(self, key) != off:
                raise ValueError(f"{key} is of ZeRO 3; set zero = 3, or leave {key} out")
        placed = {"offload_optimizer": self.offload_optimizer, "offload_parameters": self.offload_parameters}
        swapped = [key for key, place in placed.items() if place == "nvme"]
        if self.overlap_comm and self.zero == 1:
            raise ValueError("overlap_comm is of ZeRO 2 and 3: ZeRO 1 sums gradients once, after all micro-batches")
        if swapped and self.zero != 3:
            raise ValueError(f'{swapped[0]} "nvme" is of ZeRO 3; set zero = 3, or {swapped[0]} to "cpu"')
        if swapped and self.nvme_path is None:
            raise ValueError(f'{swapped[0]} "nvme" wants nvme_path, a folder on the drive')
        if self.nvme_path is not None and not swapped:
            raise ValueError('nvme_path is for offload_optimizer or offload_parameters "nvme", and neither is')
        if self.initial_scale != 16 and self.precision != "fp16":
            raise ValueError('initial_scale is of precision "fp16"; leave it out')
        return self


NEEDS_STAGE_3 = {  # and what switches them off
    "offload_parameters": "none",
    "sharded_construction": False,
    "prefetch_bucket": None,
    "hierarchical_partition": 1,
    "quantized_weights": False,
    "quantized_gradients": False,
}
