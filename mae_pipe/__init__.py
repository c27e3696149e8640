"""mae-pipe: from a folder of images to a pretrained, finetuned, probed and reported masked autoencoder.

Every verb of the command line is a function here (docs/python.md), imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mae_pipe.errors import MaePipeError as MaePipeError
    from mae_pipe.verbs.data import index as index
    from mae_pipe.verbs.data import shard as shard
    from mae_pipe.verbs.data import verify as verify
    from mae_pipe.verbs.features import embed as embed
    from mae_pipe.verbs.features import logistic as logistic
    from mae_pipe.verbs.features import sweep as sweep
    from mae_pipe.verbs.looking import plan as plan
    from mae_pipe.verbs.looking import recipes as recipes
    from mae_pipe.verbs.looking import reconstruct as reconstruct
    from mae_pipe.verbs.looking import report as report
    from mae_pipe.verbs.reproducing import reproduce as reproduce
    from mae_pipe.verbs.training import evaluate as evaluate
    from mae_pipe.verbs.training import finetune as finetune
    from mae_pipe.verbs.training import pretrain as pretrain
    from mae_pipe.verbs.training import probe as probe
    from mae_pipe.verbs.weights import export as export
    from mae_pipe.verbs.weights import import_weights as import_weights

__version__ = "0.1.0"

_HOME = {
    "MaePipeError": "mae_pipe.errors",
    "embed": "mae_pipe.verbs.features",
    "evaluate": "mae_pipe.verbs.training",
    "export": "mae_pipe.verbs.weights",
    "finetune": "mae_pipe.verbs.training",
    "import_weights": "mae_pipe.verbs.weights",
    "index": "mae_pipe.verbs.data",
    "logistic": "mae_pipe.verbs.features",
    "plan": "mae_pipe.verbs.looking",
    "pretrain": "mae_pipe.verbs.training",
    "probe": "mae_pipe.verbs.training",
    "recipes": "mae_pipe.verbs.looking",
    "reconstruct": "mae_pipe.verbs.looking",
    "report": "mae_pipe.verbs.looking",
    "reproduce": "mae_pipe.verbs.reproducing",
    "shard": "mae_pipe.verbs.data",
    "sweep": "mae_pipe.verbs.features",
    "verify": "mae_pipe.verbs.data",
}

__all__ = sorted(_HOME)  # noqa: PLE0605 (one list, not two)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mae_pipe' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
