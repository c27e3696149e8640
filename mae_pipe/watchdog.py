"""Who of a job is still there: a rank that is lost, or that hangs, ends the job within a stated time, and is named.

Every rank says once a second in the job's key-value store that it lives, and how far it is. Rank 0 reads what all say,
and gives the verdict; the others read the verdict, and watch rank 0. A collective by itself knows neither: it waits
for its time-out, or says no more than that a connection was closed.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from mae_pipe.errors import Lost, MaePipeError
from mae_pipe.signs import Phase, Seen, Sign

BEAT = 1.0  # seconds between two signs of life
LOST = 30.0  # seconds of silence after which a rank is lost
ALARMED = 5.0  # the same, once a collective has failed on some rank
LINGER = 8.0  # seconds for which rank 0 at its end waits for the others to hear of it
HANG = 600.0  # seconds in which no rank gets on
T = TypeVar("T")


class Watchdog:
    """One rank's signs and its eye on the others.

    Args:
        store: a connection of its own to the job's, with keys that are this start's own.
        end: what is done with the verdict; ends the process.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        store: Any,
        *,
        end: Callable[[str, int], None],
        lost: float = LOST,
        hang: float = HANG,
    ) -> None:
        self.rank, self.world, self.lost, self.hang = rank, world, lost, hang
        self._store, self._end = store, end
        self._mine, self._changes, self._alarmed = Sign(host=socket.gethostname()), 0, False
        now = time.monotonic()
        watched = range(world) if rank == 0 else range(1)
        self._others = {other: Seen(beat=now, progress=now) for other in watched if other != rank}
        self._names = ["verdict", "alarm", *(f"sign/{other}" for other in self._others)]  # read in the store
        self._answered, self._moved = now, now
        self._verdict: tuple[str, int] | None = None
        self._quiet, self._first = threading.Event(), True
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._talk, self._judge)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def at(self, phase: Phase, step: int) -> None:
        """This rank has come to a phase of a step."""
        self._mine.phase, self._mine.step = phase, step
        self.tick()

    def tick(self) -> None:
        """This rank gets on."""
        self._mine.ticks += 1
        self._moved = time.monotonic()

    def reason(self) -> tuple[str, int] | None:
        """After a collective has failed here: the verdict, waited for as long as one takes when all are alarmed."""
        self._alarmed = True
        until = time.monotonic() + ALARMED + 5 * BEAT
        while self._verdict is None and time.monotonic() < until:
            time.sleep(0.1)
        return self._verdict

    def leave(self, said: str = "", code: int = 0) -> bool:
        """This rank ends, with a sentence or without one.

        Returns:
            Whether the sentence is for this rank to print: no other one has said the same.
        """
        self._mine.said, self._mine.code, self._mine.gone, self._mine.phase = said, code, True, "ended"
        self._quiet.set()
        deaf = time.monotonic() - self._answered > ALARMED
        self._threads[0].join(BEAT if deaf else LINGER + 2 * BEAT)  # it says the last sign
        return self._first

    def _talk(self) -> None:
        """Say and read, once a second, for as long as the store answers."""
        until, known = float("inf"), False
        while time.monotonic() < until:
            try:
                if not known:
                    for name in self._names:
                        self._store.compare_set(name, "", "")  # one that is not there would be waited for
                known = True
                self._exchange()
            except Exception:  # the store's errors are of many classes; its silence is what counts
                return
            if self._quiet.is_set():
                # The store may be rank 0's: the others should hear before it goes how this ended.
                until = min(until, time.monotonic() + (LINGER if self.rank == 0 else 0))
                hopeless = time.monotonic() - ALARMED
                if all(seen.sign.gone or seen.beat < hopeless for seen in self._others.values()):
                    return
                time.sleep(BEAT / 5)
            else:
                self._quiet.wait(BEAT)

    def _exchange(self) -> None:
        """Say how it is here, and hear how it is elsewhere."""
        store = self._store
        self._changes += 1
        store.set(f"sign/{self.rank}", json.dumps({"change": self._changes, "sign": vars(self._mine)}))
        if self._mine.said:
            by = store.compare_set(f"sentence/{self._mine.said}", "", str(self.rank))
            self._first = bytes(by).decode() == str(self.rank)
        if self._alarmed:
            store.set("alarm", "1")
        verdict, alarm, *signs = (bytes(text).decode() for text in store.multi_get(self._names))
        now = time.monotonic()
        self._answered = now
        self._alarmed |= bool(alarm)
        for seen, text in zip(self._others.values(), signs, strict=True):
            if text:
                seen.read(text, now)
        if self._verdict is not None:  # whose verdict is the first, that is everybody's
            verdict = bytes(store.compare_set("verdict", "", json.dumps(self._verdict))).decode()
        if verdict:
            said, code = json.loads(verdict)
            self._verdict = said, code

    def _judge(self) -> None:
        """Find a verdict, or hear of one, and end the process; the main thread has a little time to end by itself."""
        while not self._quiet.is_set():
            if self._verdict is None:
                self._verdict = self._found()
            else:
                self._quiet.wait(3 * BEAT)  # the verdict goes to the others; a main thread in ``reason`` ends by itself
                if not self._quiet.is_set():
                    self._end(*self._verdict)
                    return
            self._quiet.wait(BEAT / 2)

    def _found(self) -> tuple[str, int] | None:
        now, patience = time.monotonic(), ALARMED if self._alarmed else self.lost
        if now - self._answered > patience:
            where = f" on {self._others[0].sign.host}" if self.rank and self._others[0].sign.host else ""
            return (
                f"rank 0 of {self.world}{where}, or the launcher that keeps the job's store, has been silent for "
                f"{now - self._answered:.0f} s; {_AGAIN}",
                Lost.exit_code,
            )
        for rank, seen in self._others.items():
            name = f"rank {rank} of {self.world}" + (f" on {seen.sign.host}" if seen.sign.host else "")
            if seen.sign.gone:
                if seen.sign.said and now - seen.progress > 3 * BEAT:  # the others may be about to say the same
                    return f"{name} ended: {seen.sign.said}", seen.sign.code
            elif now - seen.beat > patience:
                was = f"{seen.sign.phase}, step {seen.sign.step}"
                return f"{name} is lost: silent for {now - seen.beat:.0f} s, last {was}; {_AGAIN}", Lost.exit_code
        if self.rank == 0:
            still = min(now - self._moved, *(now - seen.progress for seen in self._others.values()))
            if still > self.hang:
                signs = {0: self._mine} | {rank: seen.sign for rank, seen in self._others.items()}
                rank, sign = min(signs.items(), key=lambda pair: pair[1].place)
                return (
                    f"no rank got on for {still:.0f} s; the furthest behind is rank {rank} of {self.world} on "
                    f"{sign.host}: {sign.phase}, step {sign.step}; {_AGAIN}",
                    Lost.exit_code,
                )
        return None


_AGAIN = "the same command goes on from the last checkpoint"
_here: list[Watchdog] = []  # this process's, in a job of several


def begin(rank: int, world: int) -> None:
    """Watch over the job whose process group was just made. Reads MASTER_ADDR and MASTER_PORT."""
    import atexit

    from torch._C._distributed_c10d import PrefixStore, TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    start = f"{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"

    store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=LOST))
    _here.append(Watchdog(rank, world, PrefixStore(f"mae-pipe/{start}", store), end=_end))
    _here[0].start()
    atexit.register(_at_exit)


def limits(*, lost: float, hang: float) -> None:
    """The seconds of the recipe instead of the usual ones."""
    for watchdog in _here:
        watchdog.lost, watchdog.hang = lost, hang


def at(phase: Phase, step: int) -> None:
    """This rank has come to a phase of a step; alone nobody watches."""
    for watchdog in _here:
        watchdog.at(phase, step)


def watched(work: Iterator[T]) -> Iterator[T]:
    """The same, each piece a sign that this rank gets on."""
    for piece in work:
        for watchdog in _here:
            watchdog.tick()
        yield piece


@contextmanager
def naming_a_lost_rank() -> Iterator[None]:
    """Turn what a collective says when another rank is gone into a sentence that names it, if one is the cause."""
    import torch.distributed as dist

    try:
        yield
    except RuntimeError as error:
        said = str(error).partition("\n")[0]
        several = dist.is_initialized() and dist.get_world_size() > 1
        if not (several and (isinstance(error, dist.DistError) or "gloo" in said)):
            raise
        if not _here:
            time.sleep(2 * LINGER)  # the verdict is known already, and is just ending this process
        verdict = _here[0].reason() if _here else None
        if verdict is None:
            raise Lost(f"a rank waited for the others in vain, though all live ({said}); {_AGAIN}") from error
        raise _of(*verdict) from error


def leave(error: MaePipeError) -> bool:
    """This process ends with ``error``; whether its sentence is for it to print, and not said by another rank."""
    return _leave(str(error), error.exit_code)


def _leave(said: str, code: int) -> bool:
    return not _here or _here.pop().leave(said, code)


def _at_exit() -> None:
    """A process that ended with neither a sentence nor well has left a traceback."""
    bug = getattr(sys, "last_value", None)
    _leave(f"{type(bug).__name__}: {bug}" if bug else "", 1 if bug else 0)


def _of(said: str, code: int) -> MaePipeError:
    error = Lost(said)
    error.exit_code = code
    return error


def _end(said: str, code: int) -> None:
    if _leave(said, code):
        print(f"mae-pipe: {said}", file=sys.stderr, flush=True)
    os._exit(code)
