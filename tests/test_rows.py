"""metrics.jsonl and TensorBoard's file on a disk that is full for a while, and on one that stays so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mae_pipe.journal import Journal

ON_A_SMALL_DISK = """
import subprocess, sys
from pathlib import Path
from mae_pipe.journal import Journal

out = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(out)], check=True)
print("mounted", flush=True)
journal = Journal(out)
def write(first, last):
    for step in range(first, last):
        journal.write("train", step, loss=1 / step, note="x" * 100)
write(1, 40)
ballast = (out / "ballast").open("wb", buffering=0)
try:
    while ballast.write(bytes(1000)):
        pass
except OSError:
    pass
write(40, 100)
assert (out / "metrics.jsonl").read_bytes().endswith(b"\\n")
if sys.argv[2] == "for a while":
    ballast.truncate(0)
    write(100, 110)
journal.close()
print((out / "metrics.jsonl").read_text())
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
board = EventAccumulator(str(out / "tensorboard")).Reload()
print([event.step for event in board.Scalars("train/loss")])
"""


def on_a_small_disk(folder: Path, how: str) -> tuple[list[int], list[int], list[str]]:
    """Steps in metrics.jsonl and in TensorBoard's file, and what was said."""
    command = ["unshare", "--map-root-user", "--mount", sys.executable, "-c", ON_A_SMALL_DISK, str(folder), how]
    root = str(Path(__file__).parents[1])
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=60, check=False)
    if not done.stdout.startswith("mounted"):
        pytest.skip("a process may not mount a file system of its own here")
    assert done.returncode == 0, done.stderr
    *rows, _, board = done.stdout.splitlines()[1:]
    return [json.loads(row)["step"] for row in rows], json.loads(board), done.stderr.splitlines()


def test_a_disk_that_is_full_for_a_while_costs_no_row_and_is_said_once(tmp_path: Path) -> None:
    rows, board, said = on_a_small_disk(tmp_path, "for a while")
    assert rows == list(range(1, 110))
    assert board == rows
    assert len(said) == 2
    assert "metrics.jsonl is kept in memory until it can be written, and training goes on" in said[0]
    assert "the disk is full" in said[0]
    assert said[1].endswith("metrics.jsonl can be written again, and lacks nothing")


def test_what_a_full_disk_lacks_is_said_at_the_end(tmp_path: Path) -> None:
    rows, _, said = on_a_small_disk(tmp_path, "for ever")
    missing = rows[-1] + 1
    assert rows == list(range(1, missing))
    expected = f"lacks {100 - missing} rows, of steps {missing} to 99: cannot write to "
    assert [line for line in said if expected in line]


def test_another_trouble_of_the_disk_ends_nothing_either(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    (tmp_path / "tensorboard").write_text("a file in the way")
    journal = Journal(tmp_path)
    journal.write("train", 1, loss=1.0)
    journal.write("train", 2, loss=0.5)
    (tmp_path / "metrics.jsonl").unlink()
    journal.write("train", 3, loss=0.25)
    journal.close()
    assert [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        1,
        0.5,
        0.25,
    ]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert "tensorboard lacks some rows that metrics.jsonl has: " in said[-1]
