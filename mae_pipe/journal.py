"""What a run writes down as it goes: metrics.jsonl, and the same for TensorBoard."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mae_pipe.disk import write_whole, writing

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

NAME = "metrics.jsonl"


class Journal:
    """Appends rows; ``active`` False (ranks other than 0) makes every call do nothing."""

    def __init__(self, folder: Path, *, active: bool = True) -> None:
        self.folder, self.active = folder, active
        self._board: SummaryWriter | None = None
        self._start = 0

    def cut(self, step: int) -> None:
        """Forget the rows after ``step``: a resumed run writes them again."""
        self._start = step
        path = self.folder / NAME
        if self.active and path.is_file():
            kept = []
            for line in path.read_bytes().splitlines(keepends=True):
                try:
                    if line.endswith(b"\n") and json.loads(line)["step"] <= step:
                        kept.append(line)
                except (ValueError, KeyError, TypeError):  # a line that a killed run tore
                    continue
            write_whole(path, b"".join(kept))

    def write(self, kind: str, step: int, **values: float | int | str) -> None:
        """One row; numbers go to TensorBoard too. What JSON has no word for, NaN and infinity, is null."""
        if not self.active:
            return
        known = {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in values.items()}
        row = {"kind": kind, "step": step, **known, "time": round(time.time(), 3)}
        with writing(self.folder), (self.folder / NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        with writing(self.folder):
            for name, value in known.items():
                if isinstance(value, int | float):
                    self._writer().add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush TensorBoard's file."""
        if self._board is not None:
            self._board.close()

    def _writer(self) -> SummaryWriter:
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self._start + 1)
        return self._board
