"""Run folders as pages: ``report.html``, one file each that loads nothing and is whole without scripts."""

from __future__ import annotations

from pathlib import Path

from mae_pipe.reporting.pages import write as _write
from mae_pipe.reporting.run_page import CHECKS, MOMENTS, film, render

__all__ = ["CHECKS", "MOMENTS", "NAME", "film", "render", "write"]

NAME = "report.html"


def write(run: Path, out: Path | None = None) -> Path:
    """Write the report of a run folder; returns its path (``RUN/report.html`` unless ``out``)."""
    return _write(render(run), out or run / NAME)
