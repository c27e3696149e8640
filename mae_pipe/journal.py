"""What a run writes down as it goes: metrics.jsonl, and the same for TensorBoard."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_pipe.rows import Rows

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

NAME = "metrics.jsonl"


class Journal:
    """Appends rows; ``active`` False (ranks other than 0) makes every call do nothing.

    A disk that refuses them does not end a run: rows wait, and what TensorBoard loses is said.
    """

    def __init__(self, folder: Path, *, active: bool = True) -> None:
        self.folder, self.active = folder, active
        self._rows = Rows(folder / NAME)
        self._board: SummaryWriter | None = None
        self._purge: int | None = 1  # what TensorBoard has from this step on is of no account
        self._lost = False  # rows of TensorBoard's

    def cut(self, step: int) -> None:
        """Forget the rows after ``step``: a run that goes on from there writes them again."""
        self._purge = step + 1
        if self.active:
            self._rows.keep(lambda row: bool(row["step"] <= step))
            self._close_board()  # the next one begins after ``step``

    def rows(self) -> list[dict[str, Any]]:
        """All rows, in their order, also those that wait for the disk."""
        return self._rows.keep(lambda row: True)

    def write(self, kind: str, step: int, **values: float | int | str) -> None:
        """One row; numbers go to TensorBoard too. What JSON has no word for, NaN and infinity, is null."""
        if not self.active:
            return
        known = {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in values.items()}
        written = self._rows.add({"kind": kind, "step": step, **known, "time": round(time.time(), 3)})
        try:
            for row in written:
                self._plot(row)
        except OSError as error:
            self._give_up_board(error)

    def close(self) -> None:
        """Flush both, and say what is missing."""
        if self.active:
            self._rows.close()
            self._close_board()

    def _plot(self, row: dict[str, Any]) -> None:
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self._purge)
        for name, value in row.items():
            if name not in ("kind", "step", "time") and isinstance(value, int | float):
                self._board.add_scalar(f"{row['kind']}/{name}", value, row["step"])

    def _close_board(self) -> None:
        try:
            if self._board is not None:
                self._board.close()
        except OSError as error:
            self._give_up_board(error)
        self._board = None

    def _give_up_board(self, error: OSError) -> None:
        """Its writer has ended with the error; the next row begins another file, which takes nothing back."""
        self._board, self._purge = None, None
        if not self._lost:
            said = f"{self.folder / 'tensorboard'} lacks some rows that {NAME} has: {error}"
            print(f"mae-pipe: {said}", file=sys.stderr, flush=True)
        self._lost = True
