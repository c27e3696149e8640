"""What a recipe may say of its engine, and in which sentence the rest is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mae_pipe import recipe
from mae_pipe.engine import config, known
from mae_pipe.errors import RecipeError
from tests.workers.stages import chosen, losses_of

Values = dict[str, Any]


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ({"zero": 0}, "engine.zero: stage 0 neither guards against gradients that are not finite"),
        ({"zero": 4}, "engine.zero: expected ZeRO stage 1, 2 or 3, got 4"),
        ({"precision": "fp8"}, "engine.precision"),
        ({"offload_parameters": "cpu"}, "offload_parameters is of ZeRO 3; set zero = 3"),
        ({"zero": 2, "sharded_construction": True}, "sharded_construction is of ZeRO 3"),
        ({"zero": 2, "hierarchical_partition": 2}, "hierarchical_partition is of ZeRO 3"),
        ({"zero": 2, "quantized_weights": True}, "quantized_weights is of ZeRO 3"),
        ({"zero": 2, "prefetch_bucket": 5}, "prefetch_bucket is of ZeRO 3"),
        ({"overlap_comm": True}, "overlap_comm is of ZeRO 2 and 3"),
        ({"zero": 2, "offload_optimizer": "nvme", "nvme_path": "/x"}, 'offload_optimizer "nvme" is of ZeRO 3'),
        ({"zero": 3, "offload_optimizer": "nvme"}, 'offload_optimizer "nvme" wants nvme_path'),
        ({"nvme_path": "/x"}, "nvme_path is for offload_optimizer or offload_parameters"),
        ({"initial_scale": 8}, 'initial_scale is of precision "fp16"'),
        ({"checkpoint_blocks": -1}, "engine.checkpoint_blocks"),
        ({"reduce_bucket": 0}, "engine.reduce_bucket"),
        ({"bucket": 5}, "unknown key 'engine.bucket'"),
        ({"profile": {"stpe": 5}}, "unknown key 'engine.profile.stpe' (did you mean 'step'?)"),
    ],
)
def test_a_wrong_engine_is_refused_in_a_sentence(engine: Values, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe.parse({"task": "pretrain", "engine": engine}, "mine")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "place"), [("cpu_adam", "none"), ("fused_adam", "cpu")])
def test_an_optimizer_steps_where_its_state_is(name: str, place: str) -> None:
    values = {"task": "pretrain", "optimizer": {"name": name}, "engine": {"offload_optimizer": place}}
    with pytest.raises(RecipeError, match="cpu_adam"):
        recipe.parse(values, "mine")


def test_muon_is_refused_with_the_reason() -> None:
    with pytest.raises(RecipeError, match=r"optimizer\.name: Muon is not offered: .*; set \"adamw\", got 'muon'$"):
        recipe.parse({"task": "pretrain", "optimizer": {"name": "muon"}}, "mine")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"gradient_cliping": 1}, "engine.deepspeed.gradient_cliping is no key of DeepSpeed's (did you mean"),
        ({"zero_optimization": {"sub_group_sice": 1}}, "zero_optimization.sub_group_sice is no key of DeepSpeed's"),
        ({"flops_profiler": {}}, "is called engine.profile in a recipe"),
        ({"aio": {"block_sise": 1}}, "(did you mean 'block_size'?)"),
        ({"zero_optimization": {"offload_param": {"bufer_count": 1}}}, "(did you mean 'buffer_count'?)"),
        ({"zero_optimization": 3}, "zero_optimization is a table with"),
        ({"steps_per_print": {"a": 1}}, "steps_per_print is a value, not a table"),
        ({"train_batch_size": 8}, "is called data.global_batch in a recipe"),
        ({"optimizer": {"type": "Adam"}}, "is called the table [optimizer] in a recipe"),
        ({"scheduler": {}}, "is called the table [schedule] in a recipe"),
        ({"zero_optimization": {"stage": 0}}, "is called engine.zero in a recipe"),
        ({"gradient_accumulation_steps": 4}, "cannot be set: the loop of mae-pipe counts micro-batches itself"),
        ({"managed_gradient_accumulation": True}, "cannot be set: the loop of mae-pipe counts micro-batches itself"),
        ({"checkpoint": {}}, "cannot be set: mae-pipe writes its own checkpoints"),
        ({"bf16": {"check_grad_overflow": False}}, "cannot be set: mae-pipe's checkpoints and its guard"),
        ({"zero_optimization": {"round_robin_gradients": True}}, "cannot be set: DeepSpeed then says wrong places"),
        ({"nebula": {}}, "nebula is no key of DeepSpeed's"),
    ],
)
def test_a_key_that_deepspeed_would_pass_over_is_refused(table: Values, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        config.require(chosen({"deepspeed": table}))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_key_that_deepspeed_looks_for_is_known() -> None:
    """DeepSpeed reads its configuration from a table that notes what it is asked for."""
    noted = r"""
import os
os.environ["DS_ACCELERATOR"] = "cpu"
asked = set()
class Noting(dict):
    def get(self, key, default=None):
        asked.add(key)
        return default
    def __contains__(self, key):
        asked.add(key)
        return False
    def keys(self):
        return self
    def __copy__(self):
        return self
from deepspeed.runtime import config
try:
    config.DeepSpeedConfig(Noting())
except AssertionError:  # it finds no batch size, after it has read everything
    pass
print(*sorted(asked - set(config._REMOVED_TOP_LEVEL_CONFIG_KEYS)))
"""
    done = subprocess.run([sys.executable, "-c", noted], capture_output=True, text=True, check=True)
    asked = done.stdout.splitlines()[-1].split()
    assert len(asked) > 40
    assert set(asked) - set(known.known()) == set()


def test_every_key_that_is_refused_is_one_of_deepspeeds() -> None:
    refused = [key for keys in known.REFUSED.values() for key in keys]
    for key in [*known.OURS, *refused]:
        place: Any = known.known()
        for part in key.split("."):
            assert part in (place or {}), key
            place = place[part]


def test_the_raw_table_lies_over_ours() -> None:
    table = {"wall_clock_breakdown": True, "zero_optimization": {"sub_group_size": 7}}
    made = config.config_of(chosen({"zero": 3, "deepspeed": table}), 4)
    assert made["wall_clock_breakdown"] is True
    assert made["zero_optimization"]["sub_group_size"] == 7
    assert made["zero_optimization"]["stage"] == 3


def test_what_this_machine_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(config, "can_read_from_drives", lambda: False)
    monkeypatch.setattr(config, "computes_in_float16", lambda: False)
    for choice, world, says in (
        ({"quantized_weights": True}, 1, "needs a GPU"),
        ({"hierarchical_partition": 4}, 6, "must divide the 6 processes"),
        ({"offload_optimizer": "nvme", "nvme_path": "/x"}, 1, "libaio"),
        ({"precision": "fp16"}, 1, "fp16"),
    ):
        with pytest.raises(RecipeError, match=says):
            config.require(chosen({"zero": 3, **choice}), world)


def test_one_step_is_profiled(tmp_path: Path) -> None:
    file = tmp_path / "profiles" / "step.txt"
    for stage in (1, 3):
        losses_of({"zero": stage, "profile": {"step": 2, "file": str(file)}}, tmp_path)
        said = file.read_text()
        assert "Profile Summary at step 2" in said
        assert "Encoder" in said
        assert "Decoder" in said
        file.unlink()
