"""The most memory that a run takes, beside what ``mae-pipe plan`` says: ``measure_run.py RECIPE SHARDS OUT --nproc 2``.

Starts `mae-pipe pretrain` with the given keys, watches all its processes, and prints the peak of every rank and of
all together, pages that several share counted once. With ``--stop-after STEPS`` it sends SIGTERM when the journal
has come so far, sees exit code 75, and runs the same command again to its end.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path


def family(pid: int) -> Iterator[int]:
    """The processes below ``pid``, at any depth."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield int(child)
            yield from family(int(child))


def proportional(pid: int) -> int:
    """Resident bytes of a process, those that others map too divided among them."""
    found = re.search(r"^Pss: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


@dataclass
class Peak:
    """Bytes: of all processes at once, and of every rank by itself."""

    together: int = 0
    each: dict[int, int] = field(default_factory=dict)

    def see(self, launcher: int) -> None:
        held = {}
        for pid in {launcher, *family(launcher)}:
            with suppress(OSError):  # it ended meanwhile
                held[pid] = proportional(pid)
        self.together = max(self.together, sum(held.values()))
        for pid, much in held.items():
            if pid != launcher:
                self.each[pid] = max(self.each.get(pid, 0), much)


def steps_of(out: Path) -> int:
    """The newest step of a run's journal."""
    journal = out / "metrics.jsonl"
    lines = journal.read_text().splitlines() if journal.exists() else []
    return max((json.loads(line).get("step", 0) for line in lines), default=0)


def run(command: list[str], out: Path, stop_after: int | None) -> tuple[int, float, Peak]:
    """Run ``command``; its exit code, seconds and memory."""
    began, peak, asked = time.monotonic(), Peak(), False
    running = subprocess.Popen(command)
    while running.poll() is None:
        with suppress(OSError):
            peak.see(running.pid)
        if stop_after is not None and not asked and steps_of(out) >= stop_after:
            running.send_signal(signal.SIGTERM)
            asked = True
        time.sleep(0.2)
    return running.returncode, time.monotonic() - began, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("shards")
    parser.add_argument("out", type=Path)
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], dest="keys", metavar="KEY=VALUE")
    parser.add_argument("--stop-after", type=int, metavar="STEPS")
    given = parser.parse_args()
    keys = [part for key in given.keys for part in ("--set", key)]
    mae_pipe = [sys.executable, "-m", "mae_pipe"]
    planned = subprocess.run(
        [*mae_pipe, "plan", given.recipe, "--device", "cpu", "--gpus", str(given.nproc), "--json", *keys],
        check=True, capture_output=True,
    )  # fmt: skip
    predicted = json.loads(planned.stdout)["processes"]
    command = [*mae_pipe, "pretrain", given.recipe, "--shards", given.shards, "--out", str(given.out)]
    command += ["--nproc", str(given.nproc), *keys]
    most = 0
    for stop_after, expected in ((given.stop_after, 75), (None, 0)) if given.stop_after else ((None, 0),):
        code, seconds, peak = run(command, given.out, stop_after)
        ranks = ", ".join(f"{much / 1e9:.2f}" for much in sorted(peak.each.values(), reverse=True)[: given.nproc])
        print(f"exit code {code}, {seconds:.0f} s; GB at the peak: {peak.together / 1e9:.2f} together, {ranks} a rank")
        if code != expected:
            raise SystemExit(f"expected exit code {expected}")
        most = max(most, peak.together)
    print(f"GB measured {most / 1e9:.2f}, planned {predicted / 1e9:.2f}: {predicted / most - 1:+.1%}")


if __name__ == "__main__":
    main()
