"""The noise of training belongs to images and micro-batches: ranks, workers and resumes do not change it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.data.batch import Batch
from mae_pipe.downstream import downstream
from mae_pipe.errors import RecipeError
from mae_pipe.sharding import build
from mae_pipe.tables import FaultChoice
from mae_pipe.tasks import MaskedAutoencoder
from tests.nursing import call
from tests.test_trainer import Line, begin, go
from tests.tiny import losses
from tests.workers import finetuned

MAE = recipe.Pretrain(
    data=recipe.Data(size=16),
    encoder=recipe.EncoderShape(width=32, depth=3, heads=2, patch=4),
    decoder=recipe.DecoderShape(width=16, depth=1, heads=2),
)


@pytest.fixture
def run(image_folder: Path, tmp_path: Path) -> Path:
    """A run folder as pretraining leaves it, of 24 images."""
    folder = tmp_path / "run"
    folder.mkdir()
    build(image_folder, tmp_path / "shards", catalog=Catalog(), workers=1)
    save_file(MaskedAutoencoder.from_recipe(MAE, Catalog()).encoder.state_dict(), folder / "encoder.safetensors")
    (folder / "recipe.json").write_text(MAE.model_dump_json())
    (folder / "run.json").write_text(json.dumps({"task": "pretrain", "shards": str(tmp_path / "shards")}))
    return folder


def test_one_rank_and_two_have_the_same_losses_with_all_the_noise_there_is(run: Path, tmp_path: Path) -> None:
    call(finetuned, run, tmp_path)
    alone, together = (losses(tmp_path / world) for world in ("1", "2"))
    assert list(alone) == list(together) == list(range(1, 9))
    assert together == pytest.approx(alone, rel=1e-5)
    assert alone[8] != pytest.approx(alone[1], rel=1e-3), "something was learnt, so that a lost gradient would show"


def test_a_micro_batch_of_one_image_has_nothing_to_be_mixed_with(run: Path, tmp_path: Path) -> None:
    alone = finetuned.chosen().data.model_copy(update={"micro_batch": 1})
    with pytest.raises(RecipeError, match="mixing wants two images at once"):
        downstream(run, finetuned.chosen().model_copy(update={"data": alone}), catalog=Catalog(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Noisy(Line):
    """Notes what torch's generator gives for every micro-batch, and is NaN once, at some position."""

    def __init__(self, poisoned: int | None = None) -> None:
        super().__init__()
        self.drawn: list[tuple[int, float]] = []
        self.poisoned = poisoned

    def forward(self, batch: Batch) -> torch.Tensor:
        position = int(batch.positions[0])
        self.drawn.append((position, torch.rand(()).item()))
        loss = super().forward(batch)
        return loss * torch.nan if position == self.poisoned else loss


def drawn(folder: Path, *, poisoned: int | None = None, **more: object) -> list[tuple[int, float]]:
    task = Noisy(poisoned)
    engine, plan, _ = begin(task)
    go(engine, plan, folder, **more)  # type: ignore[arg-type]
    return task.drawn


def test_noise_is_the_micro_batchs_also_after_a_resume_and_a_rollback(tmp_path: Path) -> None:
    whole = dict(drawn(tmp_path / "whole"))
    assert list(whole) == list(range(0, 320, 4))
    assert len(set(whole.values())) == 80
    assert drawn(tmp_path / "resumed", start=12) == list(whole.items())[12 * 4 :]
    back = drawn(
        tmp_path / "back", poisoned=164, faults=FaultChoice(nonfinite="rollback"), restore=lambda: 8, save_every=4
    )
    assert [position for position, _ in back] == [*range(0, 176, 4), *range(176, 368, 4)]
    assert all(noise == whole[position] for position, noise in back if position in whole)
