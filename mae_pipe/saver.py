"""Checkpoints written while training goes on.

A save copies what this rank holds and returns; a thread writes and syncs the copy. When the parts of all ranks lie in
the draft, rank 0's thread makes it a checkpoint and writes the plain weights beside it. Ranks meet through the run
folder, which all of them see, so no rank waits for another before the end.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from mae_pipe import checkpoints
from mae_pipe.checkpoints import Archive, Record
from mae_pipe.engine import Engine
from mae_pipe.engine.state import Held, Piece
from mae_pipe.errors import DiskError
from mae_pipe.launch import TIMEOUT, meet
from mae_pipe.machine import available_memory
from mae_pipe.recipe import Saving

LOOK = 0.05  # seconds between looks at what the other ranks have written
LAST = 10.0  # seconds that a save may take when its run has failed
SPARE = 1.5  # copies that must fit into free memory before one is made


class Saver:
    """The saves of one run on this rank.

    Args:
        folder: of checkpoints.
        keep_every: steps whose multiples are kept for ever.
        publish: writes the plain weights of a new checkpoint beside the run; called on rank 0.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        saving: Saving,
        *,
        keep_every: int | None,
        publish: Callable[[Archive], None],
    ) -> None:
        self.engine, self.folder, self.saving = engine, folder, saving
        self.keep_every, self.publish = keep_every, publish
        self._thread: threading.Thread | None = None
        self._trouble: Exception | None = None
        self._copy: dict[Piece, Tensor] = {}

    def save(self, step: int) -> None:
        """Begin to write a step's checkpoint; the one before is finished first. All ranks call it.

        A disk that is full is told on stderr and does not end the run: the next save tries again.
        """
        self._wait()
        self._tell()
        new = checkpoints.draft(self.folder, step)
        if self.engine.rank == 0:
            for torn in checkpoints.drafts(self.folder):  # of a save that failed
                shutil.rmtree(torn, ignore_errors=True)
            new.mkdir(parents=True, exist_ok=True)
        meet()
        held = self.engine.held()
        behind = self.saving.background and (self._copy.keys() == held.pieces.keys() or _fits(held))
        if behind:
            self._copy_of(held)
        self._thread = threading.Thread(target=self._write, args=(step, held), name=f"save-{step}")
        self._thread.start()
        if not behind:
            self._wait()

    def finish(self) -> None:
        """Wait until the last save is a checkpoint on every rank; raises ``DiskError`` where it could not be."""
        self._wait()
        outcome = [self._trouble]
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.broadcast_object_list(outcome, 0)
        self._trouble = None
        if outcome[0] is not None:
            raise outcome[0]

    def _copy_of(self, held: Held) -> None:
        """Let ``held`` be of a copy. Its memory is kept: to be given new pages takes as long as to write them out."""
        if self._copy.keys() != held.pieces.keys():  # AdamW has numbers from its first step on
            pinned = self.engine.device.type == "cuda"
            self._copy = {p: torch.empty(t.shape, dtype=t.dtype, pin_memory=pinned) for p, t in held.pieces.items()}
        for piece, tensor in held.pieces.items():
            self._copy[piece].copy_(tensor, non_blocking=True)
        if self.engine.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        held.pieces = dict(self._copy)

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _tell(self) -> None:
        if self._trouble is not None and not isinstance(self._trouble, DiskError):
            raise self._trouble
        self._trouble = None

    def _write(self, step: int, held: Held) -> None:
        engine, new = self.engine, checkpoints.draft(self.folder, step)
        try:
            checkpoints.write_part(new, engine.rank, engine.world, held.pieces)
        except Exception as error:  # rank 0 must not wait for a part that never comes
            self._trouble = error
            with suppress(OSError):
                checkpoints.refuse_part(new, engine.rank)
        held.pieces.clear()
        try:
            if engine.rank == 0:
                self._commit(step, held, new)
        except Exception as error:
            self._trouble = self._trouble or error
        if self._trouble is not None:
            said = f"mae-pipe: process {engine.rank}: step {step} is not saved: {self._trouble}"
            print(said, file=sys.stderr, flush=True)

    def _commit(self, step: int, held: Held, new: Path) -> None:
        """On rank 0, once all ranks have written."""
        engine, begun = self.engine, time.monotonic()
        while (found := checkpoints.parts(new, engine.world)) is None:
            ended = not threading.main_thread().is_alive()  # the run has failed; another rank may never write
            if time.monotonic() - begun > (LAST if ended else TIMEOUT.total_seconds()):
                raise DiskError(
                    f"not all of {engine.world} processes wrote into {new}; the run folder must lie on a file system "
                    "that all nodes share"
                )
            time.sleep(LOOK)
        files, refused = found
        if refused:
            shutil.rmtree(new, ignore_errors=True)
            raise DiskError(f"process {refused[0]} could not write its part into {self.folder}, and said why")
        record = Record(step, engine.world, engine.stage, engine.precision, held.numbers, held.shapes, files)
        final = checkpoints.commit(self.folder, record)
        checkpoints.prune(self.folder, keep_last=self.saving.keep_last, keep_every=self.keep_every)
        self.publish(Archive(final, record))


def _fits(held: Held) -> bool:
    """Whether a copy of what this process holds fits into the machine's free memory, beside its neighbours'."""
    needed = sum(tensor.numel() * tensor.element_size() for tensor in held.pieces.values())
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return needed * here * SPARE < available_memory()
