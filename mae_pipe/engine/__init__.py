"""The seam to DeepSpeed, and all that knows it."""

from mae_pipe.engine.config import require
from mae_pipe.engine.seam import Engine

__all__ = ["Engine", "require"]
