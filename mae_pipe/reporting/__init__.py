"""Run folders as pages: ``report.html``, one file each that loads nothing and is whole without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mae_pipe.reporting import comparison, pages, run_page
from mae_pipe.reporting.gathered import gather
from mae_pipe.reporting.run_page import CHECKS

__all__ = ["CHECKS", "NAME", "render", "write"]

NAME = "report.html"


def write(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of a run, or of several compared; its path (``RUN/report.html``, of several ``report.html`` here).

    Raises:
        RunError: one of ``runs`` is no run folder.
    """
    return pages.write(render(runs), out or (runs[0] / NAME if len(runs) == 1 else Path(NAME)))


def render(runs: Sequence[Path]) -> str:
    """The page as HTML: of one run all of it, of several what they have in common and in what they differ."""
    found = gather(runs)
    return run_page.render(found[0]) if len(found) == 1 else comparison.render(found)
