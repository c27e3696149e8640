"""The optimizers that a recipe can name, on groups of parameters."""

from __future__ import annotations

import contextlib
import io

import torch

from mae_pipe.engine.library import deepspeed
from mae_pipe.errors import RecipeError
from mae_pipe.optim import Groups
from mae_pipe.recipe import Recipe


def optimizer_of(groups: Groups, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """AdamW with the recipe's numbers: all three kinds compute the same.

    PyTorch's takes its fused kernel on CUDA, and for state in the host's memory, where it is the faster one too.

    Raises:
        RecipeError: DeepSpeed's own could not be compiled.
    """
    choice, offloaded = recipe.optimizer, recipe.engine.offload_optimizer != "none"
    numbers = {"lr": recipe.lr, "betas": choice.betas, "eps": choice.eps}
    if choice.name == "adamw":
        return torch.optim.AdamW(groups, **numbers, fused=True if device.type == "cuda" or offloaded else None)  # type: ignore[arg-type]
    deepspeed()
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # what the compiler says
            made: torch.optim.Optimizer
            made = DeepSpeedCPUAdam(groups, **numbers) if choice.name == "cpu_adam" else FusedAdam(groups, **numbers)
    except (RuntimeError, OSError, AttributeError) as error:
        raise RecipeError(
            f"DeepSpeed could not compile its optimizer {choice.name!r} ({str(error).splitlines()[0]}); it needs g++, "
            'ninja and, on a GPU, nvcc of the same CUDA as PyTorch; install them, or set optimizer.name to "adamw"'
        ) from error
    return made
