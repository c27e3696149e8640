"""No file of a checkpoint can run a program, and whatever was changed is named."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mae_pipe import checkpoints
from mae_pipe.checkpoints import Archive
from mae_pipe.engine import Engine
from mae_pipe.errors import RunError
from mae_pipe.optim import Plan
from mae_pipe.runs import Run
from mae_pipe.weights import to_safetensors
from tests.workers.stages import chosen, groups_of, task_of

PART = "rank-00000-of-00001.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tiny model."""
    run = Run(tmp_path_factory.mktemp("run"))
    run.checkpoints.mkdir()
    engine, mae = engine_of()
    saver = run.saver(engine, mae, Plan.of(mae, 160, 1), lambda archive: None)
    saver.save(3)
    saver.finish()
    engine.close()
    return run.checkpoints / "step-0000003"


def engine_of() -> tuple[Engine, Any]:
    mae = chosen({"zero": 1})
    task = task_of(mae)
    return Engine(task, groups_of(task), mae, micro_batch=4), mae


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "checkpoints" / whole.name))


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call, self.arguments


def payloads(trace: Path) -> list[bytes]:
    """Pickles that run something: by os, by builtins, by subprocess, inside torch's zip, as numpy objects."""
    program = f"open({str(trace)!r}, 'w').close()"
    import builtins
    import runpy
    import subprocess

    calls = [
        Payload(os.system, f"touch {trace}"),
        Payload(builtins.exec, program),
        Payload(builtins.eval, f"__import__('os').system('touch {trace}')"),
        Payload(subprocess.run, ["touch", str(trace)]),
        Payload(runpy._run_code, program, {}),  # type: ignore[attr-defined]
    ]
    plain = [pickle.dumps(call) for call in calls]
    zipped = io.BytesIO()
    torch.save({"weight": torch.zeros(3), "callback": calls[0]}, zipped)
    legacy = io.BytesIO()
    torch.save(calls[1], legacy, _use_new_zipfile_serialization=False)
    return [*plain, zipped.getvalue(), legacy.getvalue()]


def reseal(checkpoint: Path, change: Callable[[dict[str, Any]], None] = lambda said: None) -> None:
    """What somebody does who knows how a manifest is made."""
    said = json.loads((checkpoint / "manifest.json").read_text())
    said.pop("seal")
    for name in said["files"]:
        content = (checkpoint / name).read_bytes() if (checkpoint / name).is_file() else b""
        said["files"][name] = [hashlib.sha256(content).hexdigest(), len(content)]
    change(said)
    said["seal"] = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(said))


def load(checkpoint: Path) -> None:
    """All that a resumed run does with a checkpoint."""
    checkpoints.check(checkpoint)
    engine, _ = engine_of()
    try:
        Run(checkpoint.parents[1]).restore(engine, checkpoint)
    finally:
        engine.close()


def test_the_whole_checkpoint_is_loaded(whole: Path) -> None:
    load(whole)
    assert {kind for kind, _ in Archive.of(whole).names} == {"weight", "whole"}  # no step was made


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("sealed", [False, True])
def test_a_payload_in_the_place_of_weights_does_not_run(copy: Path, tmp_path: Path, number: int, sealed: bool) -> None:
    trace = tmp_path / "ran"
    (copy / PART).write_bytes(payloads(trace)[number])
    if sealed:
        reseal(copy)
    with pytest.raises(RunError, match="step-0000003 is damaged"):
        load(copy)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["extra.pkl", "mp_rank_00_model_states.pt", "latest", "code.py", ".hidden", "folder"])
def test_extra_files_are_named(copy: Path, name: str) -> None:
    (copy / name).mkdir() if name == "folder" else (copy / name).write_bytes(pickle.dumps(Payload(print, 1)))
    with pytest.raises(RunError, match=name):
        load(copy)


def test_every_flipped_bit_and_every_cut_is_seen(copy: Path) -> None:
    dice = random.Random(0)
    for name in ("manifest.json", PART):
        content = (copy / name).read_bytes()
        for _ in range(100):
            changed = bytearray(content)
            changed[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
            (copy / name).write_bytes(changed)
            with pytest.raises(RunError, match="damaged"):
                checkpoints.check(copy)
            (copy / name).write_bytes(content[: dice.randrange(len(content))])
            with pytest.raises(RunError, match="damaged"):
                checkpoints.check(copy)
        (copy / name).write_bytes(content)
    checkpoints.check(copy)


def test_a_link_out_of_the_folder_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / PART).rename(tmp_path / "elsewhere")
    (copy / PART).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="missing"):
        load(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said["files"].update({"../../outside": ["0" * 64, 1]}),
        lambda said: said["files"].update({"/etc/hostname": ["0" * 64, 1]}),
        lambda said: said.update(numbers=[1]),
        lambda said: said.update(step="__import__('os')"),
        lambda said: said.update(unknown=1),
        lambda said: said.update(form=99),
    ],
)
def test_a_manifest_that_was_made_up_is_refused(copy: Path, change: Callable[[dict[str, Any]], None]) -> None:
    reseal(copy, change)
    with pytest.raises(RunError, match="manifest"):
        load(copy)


@pytest.mark.parametrize(
    "content",
    [
        (2**62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        to_safetensors({"weight/encoder.cls_token@0": torch.zeros(3)}, {}),
        to_safetensors({"no place": torch.zeros(3)}, {}),
        to_safetensors({"weight/encoder.cls_token@0": torch.zeros(10**5)}, {}),
    ],
    ids=["long header", "empty", "few weights", "no names", "long weights"],
)
def test_made_up_weights_are_refused(copy: Path, content: bytes) -> None:
    (copy / PART).write_bytes(content)
    reseal(copy)
    with pytest.raises(RunError, match=r"step-0000003 is (damaged|of another model)"):
        load(copy)


def test_files_of_deepspeed_are_not_opened(copy: Path, tmp_path: Path) -> None:
    (copy / PART).unlink()
    with zipfile.ZipFile(copy / "mp_rank_00_model_states.pt", "w") as archive:
        archive.writestr("archive/data.pkl", payloads(tmp_path / "ran")[0])
    (copy / "manifest.json").write_text(json.dumps({"step": 3, "world": 1, "zero": 1, "files": {}}))
    with pytest.raises(RunError, match="earlier mae-pipe"):
        load(copy)
    assert not (tmp_path / "ran").exists()
