"""DeepSpeed's profiler, over one forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mae_pipe.engine.library import deepspeed
from mae_pipe.engine_tables import Profile


def profiled(engine: Any, choice: Profile, *args: Any, **kwargs: Any) -> Any:
    """What the engine gives for the rest; time and arithmetic of every module go to the file, or to the terminal."""
    deepspeed()
    from deepspeed.profiling.flops_profiler import FlopsProfiler

    if choice.file is not None:
        Path(choice.file).parent.mkdir(parents=True, exist_ok=True)
    profiler = FlopsProfiler(engine.module)
    profiler.start_profile()
    found = engine(*args, **kwargs)
    profiler.stop_profile()
    profiler.print_model_profile(profile_step=choice.step, output_file=choice.file)
    profiler.end_profile()
    return found
