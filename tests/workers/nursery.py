"""A process that has imported all and begun nothing, from which workers are forked: each begins at once, not in 6 s.

Reads lines of JSON: [module, arguments, files of its stdout and stderr]. Of each it writes two lines: the worker's
process number, which is its process group's too, and when it has ended its exit code (as subprocess gives it).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from types import ModuleType

from mae_pipe.engine.library import deepspeed


def main() -> None:
    deepspeed()
    for line in sys.stdin:
        name, *given = json.loads(line)
        module = importlib.import_module(name)
        child = os.fork()
        if child == 0:
            return begin(module, *given)  # the process ends as any other one does
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return None


def begin(module: ModuleType, arguments: list[str], out: str, err: str) -> None:
    """What a worker does: the module's main function, as if the module were run."""
    os.setpgid(0, 0)
    for number, (path, mode) in enumerate(((os.devnull, os.O_RDONLY), (out, os.O_WRONLY), (err, os.O_WRONLY))):
        handle = os.open(path, mode)
        os.dup2(handle, number)
        os.close(handle)
    sys.argv = [module.__name__, *arguments]
    module.main()


if __name__ == "__main__":
    main()
