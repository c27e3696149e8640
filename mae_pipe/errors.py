"""The tree of errors that a user can mend.

Each is one sentence: what was wrong (with its value), what was expected, what to do.
The command line prints that sentence and ends with the class's ``exit_code``;
programmers' mistakes stay ``ValueError`` and ``TypeError``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MaePipeError(Exception):
    """Something that the user can mend."""

    exit_code = 1


class RecipeError(MaePipeError):
    """A recipe or one of its keys does not fit."""

    exit_code = 3


class DataError(MaePipeError):
    """Images, shards or a manifest are missing or damaged."""

    exit_code = 4


class PluginError(MaePipeError):
    """A plugin is unknown, broken, or breaks its contract."""

    exit_code = 5


class RunError(MaePipeError):
    """A run folder or a checkpoint is missing, damaged, or of another run."""

    exit_code = 6


class DiskError(MaePipeError):
    """A file could not be written."""

    exit_code = 7


class TrainingError(MaePipeError):
    """Training cannot go on: the loss is not finite, or a worker process was lost."""

    exit_code = 8


class Lost(MaePipeError):
    """A rank was killed, or hangs; the same command goes on from the last checkpoint."""

    exit_code = 9


class Stopped(MaePipeError):
    """SIGTERM or SIGUSR1 came; the step was finished and saved. Not a failure: run the same command again."""

    exit_code = 75


def closest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)``, or an empty string where no known name is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
