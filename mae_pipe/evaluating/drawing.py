"""A confusion matrix and a reliability diagram as one PNG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from mae_pipe.disk import write_whole
from mae_pipe.evaluating.evaluation import Evaluation
from mae_pipe.evaluating.scores import Scores

NAMED = 40  # classes, up to which their names are written
COUNTED = 15  # classes, up to which every share is written
INK, QUIET, BLUE, RED = "#1f2933", "#6b7785", "#2563a8", "#c2410c"
STYLE: Any = {"text.parse_math": False, "font.family": "sans-serif", "font.size": 9.5, "text.color": INK}


def save(found: Evaluation, path: Path) -> None:
    """Draw what a run takes for what, and how often it is right when it is sure; ``found`` has ``scores``."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    assert found.scores is not None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13.5, 6.4), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        shown = found.allowed if found.allowed is not None else list(range(len(found.classes)))
        _confusion(figure, left, found.scores.confusion[np.ix_(shown, shown)], [found.classes[n] for n in shown])
        _reliability(right, found.scores)
        score = f"top-1 {100 * found.scores.top1:.2f} % ± {100 * found.scores.margin:.2f}"
        figure.suptitle(f"{Path(found.run).resolve().name}, step {found.step:,}: {score} on {found.images:,} images")
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", metadata={"Software": None})
    write_whole(path, drawn.getvalue())


def _confusion(figure: Any, axes: Any, counts: Any, names: list[str]) -> None:
    total = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, shrink=0.75, label="share of the class's images")
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    axes.set_title("Confusion", fontsize=11)
    if len(names) <= NAMED:
        short = [name if len(name) <= 22 else f"{name[:21]}…" for name in names]
        size = 9 if len(names) <= COUNTED else 6
        axes.set_xticks(range(len(names)), short, rotation=60, ha="right", rotation_mode="anchor", fontsize=size)
        axes.set_yticks(range(len(names)), short, fontsize=size)
    if len(names) <= COUNTED:
        for row, col in np.ndindex(*counts.shape):
            if counts[row, col]:
                colour = "white" if shares[row, col] > 0.5 else INK
                text = f"{100 * shares[row, col]:.0f}"
                axes.text(col, row, text, ha="center", va="center", fontsize=8, color=colour)


def _reliability(axes: Any, scores: Scores) -> None:
    used = [one for one in scores.bins if one.images]
    width = scores.bins[0].high
    axes.bar(
        [one.low for one in used],
        [one.accuracy for one in used],
        width,
        align="edge",
        color=BLUE,
        alpha=0.85,
        edgecolor="white",
        label="right",
    )
    axes.bar(
        [one.low for one in used],
        [one.images / scores.images for one in used],
        width / 4,
        align="edge",
        color=QUIET,
        alpha=0.6,
        label="share of all images",
    )
    axes.plot([one.confidence for one in used], [one.accuracy for one in used], "o", color=RED, label="mean of a bin")
    axes.plot([0, 1], [0, 1], "--", color=QUIET, linewidth=1, label="well calibrated")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="probability of the predicted class", ylabel="share that is right")
    axes.set_aspect("equal")
    axes.legend(loc="upper left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    error = f"calibration error {100 * scores.calibration_error:.2f} %, NLL {scores.nll:.3f}, Brier {scores.brier:.3f}"
    axes.set_title(f"Reliability: {error}", fontsize=11)
