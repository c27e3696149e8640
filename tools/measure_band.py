"""The band of losses to expect of a recipe (``monitor.band``), from runs of it that went well, one a seed.

For six readings of the monitors, or for all where the curve bends too much: the least and the greatest mean training
loss of the epoch before it, widened by a quarter of the way from the greatest to the least.

    python -m tools.measure_band RUN-0 RUN-1 RUN-2
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from mae_pipe.monitoring.rules import Story
from mae_pipe.outcome import journal
from mae_pipe.recipe import Pretrain

WIDER = 0.25  # of the way from the greatest loss to the least
POINTS = 6  # straight lines lead from one to the next


def losses(run: Path) -> dict[float, float]:
    """Epoch of every reading after the first step -> mean training loss of the epoch before it.

    Raises:
        ValueError: the run has fewer than two readings of that kind.
    """
    rows = journal(run)
    readings = [row for row in rows.get("monitor", []) if row["step"] > 0]
    story = Story(Pretrain(), [*readings, *rows.get("train", [])]) if readings else None
    found = {round(row["epoch"], 3): story.training_loss(row) for row in readings} if story else {}
    known = sum(map(math.isfinite, found.values()))
    if known < 2 or known < len(found):
        raise ValueError(
            f"{run} has {len(found)} readings of the monitors after its first step, {known} with a training loss; "
            "expected two or more, all with one; give a run with monitor.every_epochs and a loss in every epoch"
        )
    return found


def band(
    runs: list[dict[float, float]], *, wider: float = WIDER, points: int = POINTS
) -> list[tuple[float, float, float]]:
    """[epoch, low, high], of runs of the same recipe.

    Raises:
        ValueError: they were not read at the same epochs, or their loss never changes.
    """
    if any(run.keys() != runs[0].keys() for run in runs):
        raise ValueError("the runs have readings at other epochs; give runs of one recipe that have all ended")
    means = [sum(run[epoch] for run in runs) / len(runs) for epoch in runs[0]]
    margin = wider * (max(means) - min(means))
    if not margin:
        raise ValueError("the loss is the same at every reading; give runs that learned")
    epochs = list(runs[0])
    some = sorted({epochs[round((len(epochs) - 1) * n / (points - 1))] for n in range(points)})
    found = [_at(epoch, runs, margin) for epoch in some]
    places, *ends = zip(*found, strict=True)
    lows, highs = (np.interp(epochs, places, end) for end in ends)
    if all(low <= run[e] <= high for run in runs for e, low, high in zip(epochs, lows, highs, strict=True)):
        return found
    return [_at(epoch, runs, margin) for epoch in epochs]


def _at(epoch: float, runs: list[dict[float, float]], margin: float) -> tuple[float, float, float]:
    low, high = (end(run[epoch] for run in runs) for end in (min, max))
    low, high = low - margin, high + margin
    unit = 10.0 ** (math.floor(math.log10(high - low)) - 1)  # two figures of the width
    place = epoch if epoch == max(runs[0]) else math.floor(100 * epoch) / 100  # the first reading is not before it
    return place, round(math.floor(low / unit) * unit, 6), round(math.ceil(high / unit) * unit, 6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of one recipe that have ended")
    parser.add_argument("--wider", type=float, default=WIDER, help="share of that way (default: %(default)s)")
    parser.add_argument("--points", type=int, default=POINTS, help="at most so many (default: %(default)s)")
    asked = parser.parse_args()
    try:
        runs = [losses(run) for run in asked.runs]
        found = band(runs, wider=asked.wider, points=max(2, asked.points))
    except ValueError as error:
        parser.error(str(error))
    for epoch in runs[0]:
        print(f"epoch {epoch:7.2f}:", *(f"{run[epoch]:8.4f}" for run in runs))
    print("band =", [list(point) for point in found])


if __name__ == "__main__":
    main()
