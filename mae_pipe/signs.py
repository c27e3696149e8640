"""What every rank of a job says of itself, and what another one has seen of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal, get_args

Phase = Literal["beginning", "waiting for data", "computing", "updating", "evaluating and saving", "ended"]
PHASES: tuple[Phase, ...] = get_args(Phase)  # of a step, in their order


@dataclass
class Sign:
    """What a rank says of itself."""

    host: str = ""
    step: int = 0
    phase: Phase = "beginning"
    ticks: int = 0  # of progress, of any kind
    said: str = ""  # the sentence that it ended with
    code: int = 0
    gone: bool = False  # it ended, well or not

    @property
    def place(self) -> tuple[int, int]:
        return self.step, PHASES.index(self.phase)


@dataclass
class Seen:
    """What another rank last said, and when that had changed."""

    text: str = ""
    sign: Sign = field(default_factory=Sign)
    beat: float = 0.0
    progress: float = 0.0

    def read(self, text: str, now: float) -> None:
        if text == self.text:
            return
        was, self.text, self.beat = self.sign, text, now
        self.sign = Sign(**json.loads(text)["sign"])
        if (self.sign.ticks, self.sign.place) != (was.ticks, was.place):
            self.progress = now
