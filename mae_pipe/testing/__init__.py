"""Whether a plugin keeps its contract: a suite of named checks for each kind, for anybody's plugin.

``run_check`` runs one on an installed plugin by name, ``mae-pipe plugins check`` all of them; the others
take what a test has built, and raise a ``PluginError`` that says what was expected and what came instead.
"""

from mae_pipe.testing.conformance import Result, checks, run, run_check
from mae_pipe.testing.heads import check_head
from mae_pipe.testing.masks import check_mask_sampler
from mae_pipe.testing.methods import check_method
from mae_pipe.testing.shards import check_shard_format
from mae_pipe.testing.sources import check_source
from mae_pipe.testing.targets import check_target

__all__ = [
    "Result",
    "check_head",
    "check_mask_sampler",
    "check_method",
    "check_shard_format",
    "check_source",
    "check_target",
    "checks",
    "run",
    "run_check",
]
