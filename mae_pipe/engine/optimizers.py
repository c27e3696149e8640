"""The optimizers that a recipe can name, on groups of parameters."""

from __future__ import annotations

import contextlib
import io

import torch

from mae_pipe.engine.lars import Lars, each_alone
from mae_pipe.engine.library import deepspeed
from mae_pipe.errors import RecipeError
from mae_pipe.optim import Groups
from mae_pipe.recipe import Recipe


def optimizer_of(groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer; the three kinds of AdamW compute the same.

    PyTorch's AdamW takes its fused kernel everywhere: one pass over memory instead of ten.

    Raises:
        RecipeError: DeepSpeed's own could not be compiled.
    """
    choice = recipe.optimizer
    if choice.name == "lars":
        return Lars(each_alone(groups), lr=recipe.lr, momentum=choice.momentum, trust=choice.trust)
    if choice.name == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=choice.momentum)
    numbers = {"lr": recipe.lr, "betas": choice.betas, "eps": choice.eps}
    if choice.name == "adamw":
        return torch.optim.AdamW(groups, **numbers, fused=True)  # type: ignore[arg-type]
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
