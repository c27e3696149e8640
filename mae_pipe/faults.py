"""What is done where a step's loss or gradient is not finite (docs/faults.md).

A loss that is not finite is made a gradient that is not: the gradients of all ranks are summed, so every rank sees it
in the same step, DeepSpeed skips the step, and nobody waits for the device or for the others before that.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mae_pipe.data.batch import Batch
from mae_pipe.engine import Engine
from mae_pipe.errors import TrainingError
from mae_pipe.rows import Rows
from mae_pipe.tables import FaultChoice

NAME = "nonfinite.jsonl"


class Faults:
    """The policy of one run, and its file. All ranks make and ask it together.

    All that it decides by stands in the file, so a run that goes on from a checkpoint decides as if it had never ended.

    Args:
        folder: of the run.
        restore: loads the newest checkpoint and gives its step; None where there is none.
        key_of: the key of a row of the sample index.

    Attributes:
        passed: global batches of the stream that were passed over in going back.
        in_a_row: steps before the next one that were skipped.
    """

    def __init__(
        self,
        choice: FaultChoice,
        engine: Engine,
        folder: Path,
        *,
        restore: Callable[[], int | None],
        key_of: Callable[[int], str],
    ) -> None:
        self.choice, self.engine, self.restore, self.key_of = choice, engine, restore, key_of
        self._rows = Rows(folder / NAME, synced=True)
        self._noted: list[tuple[Tensor, Tensor]] = []  # loss, rows of the sample index
        self.passed, self.in_a_row, self._returns = 0, 0, 0

    def begin(self, step: int) -> None:
        """The run stands at ``step``: forget what came after it."""
        state = [0, 0, 0]
        if self.engine.rank == 0:
            kept = self._rows.keep(lambda row: bool(row.get("to", row["step"]) <= step))
            back = [row["step"] - row["to"] for row in kept if "to" in row]
            skipped = {row["step"] for row in kept if "to" not in row}
            state = [sum(back), 0, len(back)]
            while step - state[1] in skipped:
                state[1] += 1
        if self.engine.world > 1:
            dist.broadcast_object_list(state, 0)
        self.passed, self.in_a_row, self._returns = state

    def noting(self, loss: Tensor, batch: Batch) -> Tensor:
        """The loss of a micro-batch, to go backward from: its gradient is not finite where it is not."""
        value = loss.detach()
        self._noted.append((value, batch.numbers.clone()))
        return loss * torch.where(value.isfinite(), 1.0, torch.nan)

    def after(self, step: int, applied: bool) -> int | None:
        """After the engine's step number ``step`` (the first is 1).

        Returns:
            The step to go on from, where the run went back; None: it simply goes on.

        Raises:
            TrainingError: it should not go on, on all ranks.
        """
        noted, self._noted = self._noted, []
        if applied:
            self.in_a_row = 0
            return None
        found = self._gathered(noted)
        bad = sorted({one["rank"] for one in found if not math.isfinite(one["loss"])})
        if not bad and self.engine.scaled_too_high:
            self.in_a_row = 0
            return None
        what = f"the loss of step {step} is not finite on rank {', '.join(map(str, bad))}"
        what = what if bad else f"the loss of step {step} is finite, but its gradient is not"
        for one in found:
            one["loss"] = one["loss"] if math.isfinite(one["loss"]) else str(one["loss"])  # JSON knows no NaN
        row = {
            "step": step,
            "what": "loss" if bad else "gradient",
            "time": round(time.time(), 3),
            "micro_batches": found,
        }
        if self.choice.nonfinite == "stop":
            self._write(row)
            raise TrainingError(f"{what}; {self._rows.path} names the images; {_ADVICE}")
        if self.choice.nonfinite == "rollback":
            if self._returns == self.choice.budget:
                self._write(row)
                raise TrainingError(
                    f"{what}, after the run has gone back {self._returns} times (faults.budget); "
                    f"{self._rows.path} names the images; {_ADVICE}"
                )
            to = self.restore()
            if to is not None:
                self.begin(to)
                self._write(row | {"to": to})
                self.passed, self._returns = self.passed + step - to, self._returns + 1
                self._tell(f"{what}; went back to step {to}, and passes over the images of steps {to + 1} to {step}")
                return to
        self._write(row)
        self.in_a_row += 1
        if self.in_a_row >= self.choice.budget:
            raise TrainingError(
                f"the loss or gradient of steps {step - self.in_a_row + 1} to {step} was not finite on some rank, and "
                f"they were skipped (faults.budget); {self._rows.path} names the images; {_ADVICE}"
            )
        self._tell(f"{what}; the step was skipped, and {self._rows.path} names the images")
        return None

    def close(self) -> None:
        """Say what of the file is missing, if anything is."""
        self._rows.close()

    def _gathered(self, noted: list[tuple[Tensor, Tensor]]) -> list[dict[str, Any]]:
        """Every micro-batch of the step, of all ranks."""
        mine = []
        for loss, numbers in noted:
            rows = numbers.tolist()
            keys = [self.key_of(row) for row in rows]
            mine.append({"rank": self.engine.rank, "loss": float(loss), "numbers": rows, "keys": keys})
        ranks = [mine] * self.engine.world
        if self.engine.world > 1:
            dist.all_gather_object(ranks, mine)
        return [one for rank in ranks for one in rank]

    def _write(self, row: dict[str, Any]) -> None:
        if self.engine.rank == 0:
            self._rows.add(row)

    def _tell(self, text: str) -> None:
        if self.engine.rank == 0:
            print(f"mae-pipe: {text}", file=sys.stderr, flush=True)


_ADVICE = "lower optimizer.base_lr or set optimizer.clip, and resume from the last checkpoint"
