"""One worker process: it fills its parts of batches, in memory that it shares with the process that reads them.

``python -m mae_pipe.data.worker CHANNEL SLOT...``, all of them open file descriptors; ``processes`` starts it. It
imports no torch.
"""

from __future__ import annotations

import mmap
import os
import select
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from mae_pipe import errors
from mae_pipe.data.fill import Filler, Wanted
from mae_pipe.data.layout import Layout

Answer = tuple[str, str, str] | None  # what failed: the error's class, its text, where it came from; None: nothing
Job = tuple[int, int, int]  # the number of a slot, and the first and last place (exclusive)


def main() -> None:
    """Fill what is asked for until nobody asks any more."""
    channel, slots = int(sys.argv[1]), [int(descriptor) for descriptor in sys.argv[2:]]
    threading.Thread(target=_end_with_parent, args=(channel, os.getppid()), daemon=True).start()
    try:
        serve(Connection(channel), slots)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def serve(channel: Connection[Answer, Any], slots: list[int]) -> None:
    """Answer every job."""
    first: tuple[Wanted, Layout] = channel.recv()
    wanted, layout = first
    memory = [np.frombuffer(mmap.mmap(slot, layout.bytes), np.uint8) for slot in slots]
    filler: Filler | None = None
    while True:
        job: Job = channel.recv()
        slot, start, stop = job
        answer: Answer = None
        try:
            filler = filler or Filler(wanted.shelf(), wanted)
            here = slice(start, stop)
            pixels, maps, numbers, positions = layout.arrays(memory[slot])
            parts = tuple(group[here] for group in pixels)
            fill = filler.prepare(numbers[here], positions[here], parts, None if maps is None else maps[here])
            fill(range(stop - start))
        except BaseException as error:  # whatever it is, the parent tells it
            answer = _told(error)
        channel.send(answer)


def _told(error: BaseException) -> Answer:
    ours = [cls.__name__ for cls in type(error).__mro__ if cls.__module__ == errors.__name__]
    if ours:
        return ours[0], str(error), ""
    return type(error).__name__, str(error), "".join(traceback.format_exception(error))


def _end_with_parent(channel: int, parent: int) -> None:
    """In a thread: end at once when the parent is gone, also while an image is decoded."""
    poll = select.poll()
    poll.register(channel, 0)  # nothing but the other end's closing
    while os.getppid() == parent and not poll.poll(1000):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
