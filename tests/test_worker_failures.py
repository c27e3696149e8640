"""What a worker process does that is no error of ours, and which signals are not for it."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.data.order import Share
from mae_pipe.data.stream import Stream, open_stream
from mae_pipe.errors import TrainingError
from mae_pipe.sharding import build
from tests.batches import assert_same
from tests.test_processes import children, memory

ODD = """
import os
from mae_pipe.api import plugin
from mae_pipe_shards.tar import Tar

@plugin("odd")
class Odd(Tar):
    \"\"\"Fails as it is told to, where it is read.\"\"\"

    def open(self, path):
        if "ODD" in os.environ:
            exec(os.environ["ODD"])
        return super().open(path)
"""


@pytest.fixture(scope="module")
def odd(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Catalog]:
    folder = tmp_path_factory.mktemp("odd")
    (folder / "odd.py").write_text(ODD)
    catalog = Catalog((folder / "odd.py",))
    build(image_folder, folder / "shards", format="odd", catalog=catalog, workers=1, per_shard=5)
    return folder / "shards", catalog


def opened(odd: tuple[Path, Catalog], kind: str = "process") -> Stream:
    data = recipe.Data(size=16, workers=2, worker_kind=kind)  # type: ignore[arg-type]
    return open_stream(odd[0], "train", data, seed=0, share=Share(micro_batch=4), catalog=odd[1])


def test_a_local_plugin_is_read_by_workers_and_the_signals_of_a_job_are_their_parents(
    odd: tuple[Path, Catalog],
) -> None:
    with closing(opened(odd, "thread").batches()) as batches:  # type: ignore[type-var]
        expected = list(itertools.islice(batches, 12))
    with closing(opened(odd).batches()) as batches:  # type: ignore[type-var]
        found = [next(batches)]
        for worker in children():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                os.kill(worker, number)
        found += itertools.islice(batches, 11)
    assert_same(found, expected)


def test_an_error_that_is_not_ours_has_its_type_and_where_it_came_from(
    odd: tuple[Path, Catalog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ODD", "raise KeyError('of a plugin')")
    with pytest.raises(RuntimeError, match="worker process 1 of 2 failed: KeyError: 'of a plugin'") as caught:
        next(opened(odd).batches())
    assert "in open" in caught.value.__notes__[0]
    assert children() == []


def test_a_worker_that_ends_by_itself_is_named(odd: tuple[Path, Catalog], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ODD", "os._exit(3)")
    with pytest.raises(TrainingError, match=r"worker process [12] of 2 .* ended by itself with code 3"):
        next(opened(odd).batches())
    assert children() == []


def test_workers_that_cannot_be_started_are_a_sentence(
    odd: tuple[Path, Catalog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    gc.collect()
    held = len(list(Path("/proc/self/fd").iterdir())), memory()
    with pytest.raises(TrainingError, match=r"cannot be started \(No such file"):
        next(opened(odd).batches())
    gc.collect()  # the error's frames
    assert (len(list(Path("/proc/self/fd").iterdir())), memory()) == held


def test_a_worker_imports_no_torch() -> None:
    code = "import mae_pipe.data.worker, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
