"""Checkpoints are written behind the training, which a full disk does not end."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mae_pipe import checkpoints
from mae_pipe.checkpoints import Archive
from mae_pipe.engine import Engine
from mae_pipe.engine.state import Piece
from mae_pipe.errors import DiskError
from mae_pipe.optim import Plan
from mae_pipe.runs import Run
from mae_pipe.saver import Saver
from tests.workers.stages import chosen, groups_of, noise, task_of


class Begun:
    """The tiny model in an engine, and its run's saver."""

    def __init__(self, folder: Path) -> None:
        mae = chosen({"zero": 2})
        task = task_of(mae)
        self.engine = Engine(task, groups_of(task), mae, micro_batch=4)
        self.run = Run(folder)
        self.run.checkpoints.mkdir()
        self.published: list[int] = []
        self.saver: Saver = self.run.saver(self.engine, mae, Plan.of(mae, 160, 1), self._publish)

    def _publish(self, archive: Archive) -> None:
        self.published.append(archive.record.step)

    def step(self) -> None:
        self.engine.backward(self.engine(noise(torch.arange(4).numpy())))
        self.engine.step(0.1)

    def saved(self) -> list[str]:
        return sorted(path.name for path in self.run.checkpoints.iterdir())


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[Begun]:
    made = Begun(tmp_path)
    yield made
    made.engine.close()


def test_what_is_saved_is_what_was_there_when_the_save_began(begun: Begun, monkeypatch: pytest.MonkeyPatch) -> None:
    go, really = threading.Event(), checkpoints.write_part

    def slow(*arguments: object) -> None:
        assert go.wait(60)
        really(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoints, "write_part", slow)
    begun.step()
    before = begun.engine.weights()
    begun.saver.save(1)
    begun.step()  # while the save waits
    assert begun.saved() == [".step-0000001.tmp"]
    go.set()
    begun.saver.finish()
    assert begun.saved() == ["step-0000001"]
    assert begun.published == [1]
    found = Archive.of(begun.run.checkpoints / "step-0000001").weights()
    assert set(found) == set(before)
    assert all(torch.equal(found[name], before[name]) for name in before)
    assert any(not torch.equal(found[name], now) for name, now in begun.engine.weights().items())


def test_a_full_disk_is_told_and_the_next_save_tries_again(
    begun: Begun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun.step()
    begun.saver.save(1)
    begun.saver.finish()
    full, really = [True], os.fsync

    def fsync(handle: int) -> None:
        if full[0] and threading.current_thread() is not threading.main_thread() and _is_in_checkpoint(handle):
            raise OSError(errno.ENOSPC, "No space left on device")
        really(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    begun.step()
    begun.saver.save(2)
    begun.step()
    begun.saver.save(3)
    with pytest.raises(DiskError, match="the disk is full"):
        begun.saver.finish()  # a run may not end without its last checkpoint
    said = capsys.readouterr().err
    assert said.count("step 2 is not saved: cannot write to") == 1
    assert said.count("step 3 is not saved: cannot write to") == 1
    assert begun.saved() == ["step-0000001"]
    full[0] = False
    begun.saver.save(4)
    begun.saver.finish()
    assert begun.saved() == ["step-0000001", "step-0000004"]
    assert begun.published == [1, 4]


def test_rank_0_may_commit_as_soon_as_the_last_part_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks from another process, so a rank that touches the draft after that would not find it."""
    new, really, found = checkpoints.draft(tmp_path, 1), Path.replace, []
    new.mkdir()

    def replace(path: Path, target: Path) -> Path:
        after = really(path, target)
        if there := checkpoints.parts(new, 1):
            found.append(there)
            checkpoints.commit(tmp_path, checkpoints.Record(1, 1, 1, "fp32", {}, {}, there[0]))
        return after

    monkeypatch.setattr(Path, "replace", replace)
    checkpoints.write_part(new, 0, 1, {Piece("weight", "line", 0): torch.ones(3)})
    ((files, refused),) = found
    assert (list(files), refused) == (["rank-00000-of-00001.safetensors"], [])
    assert checkpoints.check(tmp_path / "step-0000001").files == {name: tuple(said) for name, said in files.items()}


def _is_in_checkpoint(handle: int) -> bool:
    return Path(f"/proc/self/fd/{handle}").readlink().parent.name.startswith(".step")
