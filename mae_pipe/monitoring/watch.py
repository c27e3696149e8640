"""A reading every so often: written down, said, and judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mae_pipe.engine import Engine
from mae_pipe.journal import Journal
from mae_pipe.live import Live
from mae_pipe.monitoring.held_out import HeldOut
from mae_pipe.monitoring.rules import warnings
from mae_pipe.optim import Plan
from mae_pipe.recipe import Pretrain

WORDS = {
    "held_out_loss": "held-out loss",
    "rankme": "RankMe",
    "cosine": "mean cosine",
    "knn": "k-NN",
}


class Watch:
    """Reads before the first step, every ``monitor.every_epochs`` and after the last; never, where that is 0.

    All ranks call it after every step. Nothing that training goes on from is touched.

    Args:
        held_out: the images; None: the shards have none, so only the method's signs and the training loss are read.
        signs: the method's, of its last step.
    """

    def __init__(
        self,
        recipe: Pretrain,
        plan: Plan,
        held_out: HeldOut | None,
        signs: Callable[[], Mapping[str, float]],
        *,
        journal: Journal,
        live: Live,
    ) -> None:
        self.recipe, self.plan, self.held_out, self.signs = recipe, plan, held_out, signs
        self.journal, self.live = journal, live
        self.every = plan.steps_of(recipe.monitor.every_epochs) if recipe.monitor.every_epochs else 0

    def __call__(self, step: int, engine: Engine) -> None:
        """Read, if ``step`` is one of them; leaves the engine in training mode."""
        left = self.plan.steps - step
        if not self.every or (left and (step % self.every or 2 * left < self.every)):  # the last one is near enough
            return
        found = dict(self.signs())
        if self.held_out is not None:
            found |= self.held_out.read(engine)
            found |= {"images": self.held_out.images}
        if not self.journal.active:
            return
        self.journal.write("monitor", step, **{**found, "epoch": self.plan.epoch(step)})
        said = ", ".join(f"{WORDS.get(name, name)} {value:.4g}" for name, value in found.items() if name != "images")
        self.live.say(f"monitor, epoch {self.plan.epoch(step):.2f}: {said or 'nothing to read'}")
        for rule, text in warnings(self.recipe, self.journal.rows()):
            self.journal.write("warning", step, rule=rule, text=text)
            self.live.say(f"[yellow]warning[/yellow], epoch {self.plan.epoch(step):.2f}: {text}")
