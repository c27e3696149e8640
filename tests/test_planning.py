"""What `mae-pipe plan --gpus` and `mae-pipe tune` say, against counted tensors, hand calculation and real runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mae_pipe import cli, recipe
from mae_pipe.catalog import Catalog
from mae_pipe.errors import DataError
from mae_pipe.planning import tuning
from mae_pipe.planning.fit import Setting, cheapest
from mae_pipe.planning.forecast import Forecast
from mae_pipe.planning.machines import Machines
from mae_pipe.planning.memory import Memory
from mae_pipe.planning.traffic import Links, step, traffic
from mae_pipe.sharding import build
from tools.measure_states import measured

SMALL = ["data.size=32", "data.global_batch=4", "data.micro_batch=2", "encoder.depth=2", "engine.precision=bf16"]


def chosen(*changes: str) -> recipe.Pretrain:
    loaded = recipe.load("digits", [*SMALL, *changes])
    assert isinstance(loaded, recipe.Pretrain)
    return loaded


@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("offload", ["none", "cpu"])
def test_the_memory_is_what_an_engine_holds(zero: int, offload: str) -> None:
    mae = chosen(f"engine.zero={zero}", f"engine.offload_optimizer={offload}", "engine.reduce_bucket=10000")
    found = measured(mae)
    forecast = Forecast(mae, Catalog(), Machines(gpus=1, device="cpu"), images=1000)
    said = forecast.memory(forecast.given)
    assert said.device + said.host == pytest.approx(max(found[k] for k in ("forward", "backward", "step")), rel=0.1)


def test_recomputing_blocks_holds_less() -> None:
    forecast = Forecast(chosen(), Catalog(), Machines(gpus=1), images=1000)
    assert forecast.activations(2, forecast.weights.blocks) < forecast.activations(2, 0)


def test_a_step_is_reckoned_as_by_hand() -> None:
    engine = recipe.EngineChoice(zero=1)
    assert traffic(1000, engine, 4).sent(2) == (2 * 4000 + 2000) / 2  # sums in float32, weights in bf16
    links = Links(gpus=8, inside=100, between=10)
    one = step(10**9, engine, links, world=16, global_batch=4096, micro_batch=64, rate=256.0)
    talk = (2 * 4e9 + 2e9) / 2 / 10e9  # between two nodes; inside them it is 0.094 s
    assert (one.accumulation, one.compute) == (4, 1.0)
    assert one.talk == pytest.approx(talk)
    assert one.images_per_second == pytest.approx(4096 / (1 + talk))


def test_more_gpus_are_faster_and_less_efficient() -> None:
    machines = Machines(gpus=8, nodes=2, rate=500.0)
    mae = recipe.load("mae_vit_base_patch16", ["encoder.depth=1", "decoder.depth=1", "data.micro_batch=4"])
    assert isinstance(mae, recipe.Pretrain)
    forecast = Forecast(mae, Catalog(), machines, images=1_281_167)
    found = forecast.scaling(forecast.given)
    assert [one.world for one in found] == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert [one.images_per_second for one in found] == sorted(one.images_per_second for one in found)
    assert [one.efficiency for one in found] == sorted((one.efficiency for one in found), reverse=True)


def test_the_cheapest_that_fits_is_the_first_at_the_largest_micro_batch() -> None:
    def need(setting: Setting) -> Memory:
        return Memory(100 // setting.zero, 0, setting.micro_batch, 0, 0)

    rungs = [Setting(1, 1), Setting(2, 1), Setting(3, 1)]
    assert cheapest(rungs, [8, 4, 2, 1], need, lambda m: m.device <= 54) == Setting(2, 4)
    assert cheapest(rungs, [8, 4, 2, 1], need, lambda m: m.device <= 10) is None


def ours(*arguments: str) -> Result:
    return CliRunner().invoke(cli._group, arguments, standalone_mode=False)


def test_json_and_the_screen_say_the_same() -> None:
    shallow = ("--set", "encoder.depth=2", "--set", "decoder.depth=1")
    command = ["plan", "digits", "--gpus", "2", "--images", "4000", *shallow]
    process = [sys.executable, "-m", "mae_pipe", *command, "--json"]
    first = subprocess.run(process, capture_output=True, check=True, text=True).stdout
    assert ours(*command, "--json").stdout == first
    assert json.loads(first)["schedule"]["steps"] == 1875
    screen = ours(*command).stdout
    assert "1,875, 125 of them warmup" in screen
    assert " ".join(json.loads(first)["cheapest"]["set"][:1]) in screen


GREEDY = """
from mae_pipe.api import MaskSampler, plugin


@plugin("greedy")
class Greedy(MaskSampler):
    # Takes too much memory for two images.

    def scores(self, images, grid, rng):
        if len(images) == 2:
            raise MemoryError("out of memory")
        return rng.uniform(grid.size)
"""


@pytest.fixture
def shards(image_folder: Path, tmp_path: Path) -> Path:
    build(image_folder, tmp_path / "shards", catalog=Catalog(), workers=1)
    return tmp_path / "shards"


@pytest.mark.parametrize("thorough", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_tune_survives_a_candidate_that_fails_and_writes_a_recipe_that_loads(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thorough: bool
) -> None:
    given = ["encoder.depth=1", "mask.name=greedy"]
    if not thorough:  # each candidate is a process of its own: here two, without other workers and recomputed blocks
        monkeypatch.setattr(tuning, "_workers", lambda given: ())
        given.append("engine.checkpoint_blocks=1")
    out, greedy = tmp_path / "tuned.toml", tmp_path / "greedy.py"
    greedy.write_text(GREEDY)
    changes = [word for change in (*SMALL, *given) for word in ("--set", change)]
    command = ["tune", "digits", "--shards", str(shards), "--out", str(out), "--plugin", str(greedy), *changes]
    done = ours(*command, "--minutes", "1")
    assert done.exception is None, done.exception
    tuned = recipe.load(str(out), task="pretrain")
    assert (tuned.data.micro_batch, tuned.data.global_batch) == (1, 4)
    assert done.stderr.count("micro-batch 2, 2 workers: out of memory") == (2 if thorough else 1)
    assert ("micro-batch 1, 1 workers" in done.stderr) == thorough
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"shards", "tuned.toml", "greedy.py"}
    lost = ours(*command, "--split", "nowhere").exception
    assert isinstance(lost, DataError)
    assert "no split 'nowhere'" in str(lost)


def test_a_dry_run_touches_nothing(shards: Path, tmp_path: Path) -> None:
    done = ours("pretrain", "digits", "--shards", str(shards), "--out", str(tmp_path / "run"), "--dry-run")
    assert "Cheapest that fits" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"shards"}
