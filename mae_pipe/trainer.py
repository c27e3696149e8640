"""The loop: batches in, steps out. Every task trains here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist

from mae_pipe import watchdog
from mae_pipe.consensus import Consensus
from mae_pipe.data.batch import Batch
from mae_pipe.data.device import Placed, placed
from mae_pipe.engine import Engine
from mae_pipe.errors import Stopped
from mae_pipe.faults import Faults
from mae_pipe.journal import Journal
from mae_pipe.launch import meet
from mae_pipe.live import Live
from mae_pipe.optim import Plan
from mae_pipe.seeding import key
from mae_pipe.stopping import asked_to_stop
from mae_pipe.tables import FaultChoice

SKIP = FaultChoice()


class Source(Protocol):
    """What gives batches."""

    def batches(self, start: int = 0) -> Iterator[Batch]: ...


def train(
    engine: Engine,
    source: Source,
    plan: Plan,
    *,
    journal: Journal,
    live: Live,
    seed: int,
    start: int = 0,
    log_every: int = 20,
    save_every: int,
    save: Callable[[int], None],
    finish: Callable[[], None] = lambda: None,
    stepped: Callable[[int, bool], None] | None = None,
    after_step: Callable[[int], None] | None = None,
    seen: Callable[[int, Batch, torch.Tensor], None] | None = None,
    faults: FaultChoice = SKIP,
    restore: Callable[[], int | None] = lambda: None,
    key_of: Callable[[int], str] = str,
) -> None:
    """Train from step ``start`` to ``plan.steps``.

    Args:
        seed: of dropout and drop path, which draw from torch's generator: set anew for every micro-batch by its first
            position in the stream, so that neither ranks nor where a run stopped change them.
        save: begins to write the checkpoint of a step; called every ``save_every`` steps and at the end.
        finish: waits until the last of them is whole.
        stepped: part of a step, after the optimizer's: its number, and whether it was made or skipped.
        after_step: evaluations and pictures; they decide by the step themselves.
        seen: sees every (step, batch, loss), for tests and debugging; reading the loss makes the device wait.
        faults: what is done where a loss or gradient is not finite.
        restore: goes back to the newest checkpoint and gives its step; None where there is none.
        key_of: the key of an image's number, by which it is named.
    """
    engine.train()
    meter = _Meter(engine, plan)
    noise = key(seed, "noise")
    anyone = Consensus(("stop",))
    policy = Faults(faults, engine, journal.folder, restore=restore, key_of=key_of)
    policy.begin(start)
    with (
        closing(_Feed(source, engine.device)) as feed,
        _written_down(journal, policy),
        asked_to_stop() as asked,
    ):
        feed.begin((start + policy.passed) * plan.global_batch)
        step = start
        while step < plan.steps:
            lr = plan.lr(step)
            for _ in range(plan.accumulation):
                watchdog.at("waiting for data", step)
                with meter.waiting():
                    batch, there = feed.next()
                watchdog.at("computing", step)
                torch.manual_seed((noise + int(batch.positions[0])) % 2**63)
                loss = engine(there)
                engine.backward(policy.noting(loss, batch) / plan.accumulation)
                meter.add(loss)
                if seen is not None:
                    seen(step, batch, loss)
            watchdog.at("updating", step)
            back = policy.after(step + 1, _stepped(engine, plan, step, stepped))
            if back is not None:
                step = back
                journal.cut(step)
                feed.begin((step + policy.passed) * plan.global_batch)
                meter = _Meter(engine, plan)
                continue
            done = step + 1
            stop = bool(anyone(stop=asked())["stop"])
            if done % log_every == 0 or done == plan.steps:
                meter.tell(done, journal, live, lr=lr, skipped=policy.in_a_row)
            watchdog.at("evaluating and saving", step)
            with meter.pausing():
                if after_step is not None:
                    after_step(done)
                    engine.train()
                if done % save_every == 0 or done == plan.steps or stop:
                    save(done)
                if done == plan.steps or stop:
                    finish()
                    meet()  # whoever ends first must not have the others ended in the middle of writing
            if done == plan.steps or stop:
                anyone.last()
            if stop and done < plan.steps:
                raise Stopped(f"asked to stop: step {done} is saved; the same command goes on from there")
            step = done


def _stepped(engine: Engine, plan: Plan, step: int, after: Callable[[int, bool], None] | None) -> bool:
    """Make step number ``step``; whether the engine did not skip it."""
    applied = engine.step(plan.lr(step), epoch=plan.epoch(step), decay=plan.weight_decay(step))
    if after is not None:
        after(step + 1, applied)
    return applied


class _Feed:
    """A source's batches on a device, from wherever it is told."""

    def __init__(self, source: Source, device: torch.device) -> None:
        self.source, self.device = source, device
        self._batches: Iterator[Batch] = iter(())
        self._pairs: Iterator[Placed] = iter(())

    def begin(self, position: int) -> None:
        """Go on from a position in the stream."""
        self.close()
        self._batches = self.source.batches(position)
        self._pairs = placed(self._batches, self.device)

    def next(self) -> Placed:
        return next(self._pairs)

    def close(self) -> None:
        """End what reads ahead."""
        for made in (self._pairs, self._batches):
            if hasattr(made, "close"):
                made.close()


class _Meter:
    """Loss and speed since the last reading, without making the device wait in between."""

    def __init__(self, engine: Engine, plan: Plan) -> None:
        self.engine, self.plan = engine, plan
        self._clear()

    def _clear(self) -> None:
        self._loss = torch.zeros((), device=self.engine.device)
        self._count, self._waited, self._paused = 0, 0.0, 0.0
        self._began = time.perf_counter()

    def add(self, loss: torch.Tensor) -> None:
        self._loss += loss.detach()
        self._count += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Time for checkpoints, pictures and evaluations: no part of the speed."""
        began = time.perf_counter()
        yield
        self._paused += time.perf_counter() - began

    def tell(self, step: int, journal: Journal, live: Live, *, lr: float, skipped: int) -> None:
        """Write down and show the steps since the last time."""
        numbers = self.read(step)
        journal.write("train", step, **numbers, lr=lr, grad_norm=self.engine.gradient_norm(), skipped=skipped)
        shown = ("epoch", "loss", "images_per_second", "wait_share")
        live.show(step, lr=lr, **{name: numbers[name] for name in shown})

    def read(self, step: int) -> dict[str, Any]:
        """The journal's numbers of the steps since the last reading, over all ranks."""
        loss = self._loss / self._count
        if self.engine.world > 1:
            dist.all_reduce(loss)
            loss /= self.engine.world
        value = float(loss)  # here the device is waited for
        seconds = max(time.perf_counter() - self._began - self._paused, 1e-9)
        images = self._count * self.plan.micro_batch * self.engine.world
        numbers = {
            "epoch": self.plan.epoch(step),
            "images": step * self.plan.global_batch,
            "loss": value,
            "images_per_second": images / seconds,
            "wait_share": self._waited / seconds,
        }
        self._clear()
        return numbers


@contextmanager
def _written_down(journal: Journal, policy: Faults) -> Iterator[None]:
    """Write what is still to be written, also where training fails."""
    try:
        yield
    except BaseException:
        journal.close()
        raise
    finally:
        policy.close()
