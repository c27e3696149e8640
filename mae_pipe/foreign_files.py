"""Files of weights that others wrote: their tensors are read, and nothing in them is run."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mae_pipe.errors import DataError

ADVICE = "where you trust it, save its state_dict() to a file of its own and give that"


def read_foreign(file: Path, allowed: Iterable[Any] = ()) -> Any:
    """What a .safetensors file or one of ``torch.save`` holds: mostly dictionaries of tensors.

    A file of ``torch.save`` in today's form is mapped, so that what is not used is never read.

    Args:
        allowed: harmless classes, or (class, name), that a pickle may build; see ``torch.serialization.safe_globals``.

    Raises:
        DataError: the file is missing or damaged, or its pickle names anything else, which was not run.
    """
    if not file.is_file():
        raise DataError(f"there is no file {file}; give a local .pkl, .pth or .safetensors file")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        # torch warns of pickles that others wrote; what it cannot read it refuses all the same.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals([*allowed]):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise DataError(f"{file} cannot be read: {(str(error).splitlines() or ['it is empty'])[0]}") from error
    except Exception as error:  # the unpickler's own, of what it was asked to build or call and has not
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = named[1] if named else "more than tensors"
        raise DataError(f"{file} names {what}, which was not run; {ADVICE}") from error
