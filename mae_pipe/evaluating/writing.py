"""What measuring found, as files: everything as JSON, a line an image as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from mae_pipe.disk import write_whole, writing
from mae_pipe.errors import RunError
from mae_pipe.evaluating.evaluation import Evaluation, Evaluations
from mae_pipe.evaluating.judged import Judged


def save(found: Evaluations, path: Path) -> None:
    """Write ``path`` whole: ``sets``, and the mean error over them."""
    _write(path, json.dumps(found.to_json()) + "\n")


def read(path: Path) -> Evaluations:
    """What ``save`` wrote.

    Raises:
        RunError: it is no such file.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Evaluations([Evaluation.from_json(one) for one in values["sets"]])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is no evaluation ({error}); write it with: mae-pipe evaluate RUN") from error


def save_predictions(path: Path, rows: Judged, key: Callable[[int], str], classes: Sequence[str]) -> None:
    """Write a CSV file whole: key, label, predicted, probability of every image, in the order of the shards."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("key", "label", "predicted", "probability"))
    for number, label, said, share in zip(rows.number, rows.label, rows.predicted, rows.probability, strict=True):
        lines.writerow((key(int(number)), classes[label], classes[said], repr(float(share))))
    _write(path, text.getvalue())


def _write(path: Path, text: str) -> None:
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode())
