"""How soon the command line answers what needs no network: processor seconds of whole processes, by turns.

Beside it: the interpreter alone, click and rich alone (what any such command line must load), and torch alone (what it
must not).

    python tools/bench_cli.py --runs 15
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys

MINE = "import sys; sys.argv = ['mae-pipe', *sys.argv[1:]]; from mae_pipe.cli import main; main()"
ANSWERS: dict[str, list[str]] = {
    "the interpreter alone": ["pass"],
    "click and rich alone": ["import click, rich.console, rich.table"],
    "torch alone": ["import torch"],
    "mae-pipe --help": [MINE, "--help"],
    "mae-pipe plugins": [MINE, "plugins"],
    "mae-pipe plugins show head linear": [MINE, "plugins", "show", "head", "linear"],
    "mae-pipe recipes": [MINE, "recipes"],
}


def seconds(arguments: list[str]) -> float:
    """Processor seconds of one process, start and end included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="rounds, in each of which everything runs once")
    runs = parser.parse_args().runs
    found: dict[str, list[float]] = {name: [] for name in ANSWERS}
    for _ in range(runs):
        for name, arguments in ANSWERS.items():
            found[name].append(seconds(arguments))
    least = statistics.median(found["click and rich alone"])
    print(f"processor seconds, {runs} runs by turns: min / median / max; ratio to click and rich alone")
    for name, values in found.items():
        middle = statistics.median(values)
        print(f"{min(values):6.2f} / {middle:5.2f} / {max(values):5.2f} {middle / least:6.2f}  {name}")


if __name__ == "__main__":
    main()
