"""The line that a person watches while a run goes on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from mae_pipe.outcome import METRICS

PLAIN_SECONDS = 10.0  # between lines where nobody watches: a log file, a pipe


class _Numbers(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("numbers", "")), style="cyan")


class Live:
    """One moving line on a terminal; a plain line every ten seconds elsewhere; nothing on other ranks."""

    def __init__(self, name: str, steps: int, *, start: int = 0, console: Console | None = None, active: bool = True):
        self.console = console or Console(stderr=True)
        self.name, self.steps, self.active = name, steps, active
        self._moving = active and self.console.is_terminal
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            _Numbers(),
            console=self.console,
            disable=not self._moving,
        )
        self._task = self._progress.add_task(name, total=steps, completed=start)
        self._said, self._start, self._began = -PLAIN_SECONDS, start, time.monotonic()
        self._measured = ""

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """A line of its own."""
        if self.active:
            self.console.print(text, highlight=False, soft_wrap=True)

    def measured(self, name: str, metrics: Mapping[str, float]) -> None:
        """The newest evaluation, said at the end of every line from now on."""
        if name in metrics:
            self._measured = f"  {METRICS.get(name, name)} {metrics[name]:.2%}"

    def show(
        self, step: int, *, epoch: float, loss: float, lr: float, images_per_second: float, wait_share: float
    ) -> None:
        """The newest numbers."""
        elapsed = time.monotonic() - self._began
        left = elapsed / max(1, step - self._start) * (self.steps - step)
        numbers = (
            f"epoch {epoch:.2f}  loss {loss:.4f}  lr {lr:.2e}  {images_per_second:,.0f} images/s  "
            f"data wait {wait_share:.0%}  ETA {_clock(left)}"
        )
        self.tell(step, numbers + self._measured)

    def tell(self, step: int, numbers: str) -> None:
        """How far it is, and what else there is to say."""
        elapsed = time.monotonic() - self._began
        if self._moving:
            self._progress.update(self._task, completed=step, numbers=numbers)
        elif self.active and (elapsed - self._said >= PLAIN_SECONDS or step >= self.steps):
            self._said = elapsed
            self.console.print(f"{self.name} {step}/{self.steps}  {numbers}", highlight=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
