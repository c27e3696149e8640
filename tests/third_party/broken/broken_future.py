"""Written for a version of the interface that is not there yet."""

from mae_pipe.api import MaskSampler, plugin

MAE_PIPE_API = 2


@plugin("future")
class FutureMask(MaskSampler):
    """Not for now."""
