"""Blocks that compute their activations again give the same gradients and keep less."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mae_pipe.errors import RecipeError
from mae_pipe.recompute import blocks_of, recompute
from mae_pipe.tasks import MaskedAutoencoder
from tests.workers import stages

DROP_PATH = {"drop_path": 0.5}


def task_of() -> MaskedAutoencoder:
    mae = stages.chosen({})
    return stages.task_of(mae.model_copy(update={"encoder": mae.encoder.model_copy(update=DROP_PATH)})).train()


def trained(task: MaskedAutoencoder) -> tuple[dict[str, Tensor], int]:
    """The gradients of one batch, and the numbers that the forward pass keeps for them."""
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = task(stages.noise(np.arange(8)))
    loss.backward()
    return {name: p.grad for name, p in task.named_parameters() if p.grad is not None}, sum(kept)


def test_gradients_are_the_same_to_the_last_bit_and_activations_are_fewer() -> None:
    plain, most = trained(task_of())
    for blocks, least in ((1, 0), (2, 0), (99, 0)):
        task = task_of()
        names = list(task.state_dict())
        recompute(task, blocks)
        assert list(task.state_dict()) == names
        found, kept = trained(task)
        assert found.keys() == plain.keys()
        assert all(torch.equal(found[name], plain[name]) for name in plain)
        assert least < kept < most
        most = kept


def test_the_encoders_blocks_come_before_the_decoders() -> None:
    task = task_of()
    assert blocks_of(task) == [*task.encoder.blocks, *task.decoder.blocks]


def test_a_model_without_blocks_is_refused() -> None:
    recompute(nn.Linear(2, 2), 0)
    with pytest.raises(RecipeError, match="checkpoint_blocks"):
        recompute(nn.Linear(2, 2), 1)
