"""An average of the weights: its formula, on any ranks; measured, saved and gone on with."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mae_pipe.catalog import Catalog
from mae_pipe.checkpoints import Archive
from mae_pipe.downstream import downstream
from mae_pipe.engine.state import AVERAGE
from tests.nursing import call
from tests.test_downstream import chosen, measured, run, shards  # noqa: F401  # two are fixtures
from tests.tiny import losses
from tests.workers import elastic
from tests.workers.elastic import BEFORE, DECAY, Model
from tests.workers.stages import noise

OFFLOADED = "1.2.fp32.offload_optimizer=cpu.ema"
# With LARS, whose momentum goes the same way (tests/test_lars.py); in three parts most tensors are padded.
QUICK = ("1.1.fp32.optimizer=lars.ema", "3.2.fp32.optimizer=lars.ema")
ADAMW = ("1.1.fp32.ema", "2.1.fp32.ema", "2.2.fp32.ema", "3.3.fp32.ema")


def by_formula(weights: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The average after the last, in float64: of the first as it begins, then of every step."""
    found = {name: tensor.double() for name, tensor in weights[0].items()}
    for after in weights[1:]:
        found = {name: DECAY * found[name] + (1 - DECAY) * after[name].double() for name in found}
    return found


@pytest.mark.parametrize("setting", ["1.1.fp32.ema", "1.2.bf16.ema", "1.3.fp32.ema", "1.1.bf16.ema", OFFLOADED])
def test_it_is_the_plain_formula_and_leaves_no_trace(tmp_path: Path, setting: str) -> None:
    model, images = Model(setting, tmp_path), noise(np.arange(4))
    engine = model.engine
    weights = [engine.weights()]
    for step in range(BEFORE):
        model.train(step, step + 1)
        weights.append(engine.weights())
    expected = by_formula(weights)

    engine.train(False)
    with torch.no_grad():
        now = engine(images).item()
        with engine.averaged():
            averaged, inside = engine(images).item(), engine.weights()
        assert engine(images).item() == now
    engine.train()
    assert all(torch.allclose(inside[name].double(), expected[name], rtol=0, atol=1e-6) for name in expected)
    after = engine.weights()
    assert all(torch.equal(after[name], weights[-1][name]) for name in after)
    assert averaged != now

    engine.backward(engine(images) * float("nan"))
    assert not engine.step(0.1)
    model.save(BEFORE)
    checkpoint = tmp_path / "checkpoints" / f"step-{BEFORE:07d}"
    archive = Archive.of(checkpoint)
    saved = {name for kind, name in archive.names if kind == AVERAGE}
    assert saved == {name for name, (kind, _) in archive.record.tensors.items() if kind == "weight"}
    for name in saved:  # as before the step that was skipped
        assert torch.equal(archive.whole(AVERAGE, name), inside[name].flatten()), name

    model.train(BEFORE, BEFORE + 1)
    model.run.restore(engine, checkpoint)  # as a run goes back
    with engine.averaged():
        again = engine.weights()
    assert all(torch.equal(again[name], inside[name]) for name in inside)
    model.close()


@pytest.mark.parametrize(
    ("settings", "moments"),
    [(QUICK, {"momentum_buffer"}), pytest.param(ADAMW, {"exp_avg", "exp_avg_sq"}, marks=pytest.mark.slow)],
)
def test_any_ranks_keep_the_same_and_go_on_with_each_others(
    tmp_path: Path, settings: tuple[str, ...], moments: set[str]
) -> None:
    call(elastic, tmp_path, *settings)
    found = json.loads((tmp_path / "found.json").read_text())
    assert {
        pair: other for pair, other in found["other"].items() if other
    } == {}  # to the last bit, also there and back
    archives = [Archive.of(tmp_path / one / "checkpoints" / f"step-{BEFORE:07d}") for one in settings]
    assert archives[0].kinds == {"weight", "whole", AVERAGE, *moments}
    for (kind, name), other in product(archives[0].names, archives[1:]):
        if kind == AVERAGE and "qkv.bias" not in name:  # the gradient of a key's bias is nothing but rounding
            assert torch.allclose(archives[0].whole(kind, name), other.whole(kind, name), rtol=0, atol=2e-6), name


@pytest.mark.parametrize("zero", [1, 3])
def test_a_run_is_measured_and_published_by_its_average_and_trains_as_without(
    run: Path,  # noqa: F811
    shards: Path,  # noqa: F811
    zero: int,
) -> None:
    keys = ["labels_per_class=8", "eval_every_epochs=1", "saving.every_epochs=1", "saving.keep_last=9"]
    keys += ["logging.every_steps=1", f"engine.zero={zero}", "engine.persistence_threshold=0"]
    plain, out = run / "plain", run / "averaged"
    downstream(run, chosen("finetune", *keys), catalog=Catalog(), out=plain)
    averaged = chosen("finetune", *keys, "ema=0.8")
    result = downstream(run, averaged, catalog=Catalog(), out=out)
    assert losses(out) == losses(plain)  # to the last bit, although it was measured in between
    assert result.metrics == pytest.approx(measured(run, out, shards), rel=1e-5)
    assert result.metrics["loss"] != pytest.approx(measured(run, plain, shards)["loss"], rel=1e-3)
    assert json.loads((out / "result.json").read_text())["ema"] == 0.8
    last = sorted((out / "checkpoints").iterdir())[-1]
    published, archive = load_file(out / "model.safetensors"), Archive.of(last)
    for name, weights in load_file(plain / "model.safetensors").items():
        assert torch.equal(archive.whole("weight", name), weights.flatten())
        assert torch.equal(archive.whole(AVERAGE, name), published[name].flatten())

    shutil.rmtree(last)
    (out / "model.safetensors").unlink()
    assert downstream(run, averaged, catalog=Catalog(), out=out).metrics == result.metrics
    again = load_file(out / "model.safetensors")
    assert all(torch.equal(again[name], published[name]) for name in published)
