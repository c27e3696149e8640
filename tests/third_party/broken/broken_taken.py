"""Claims a built-in name."""

from mae_pipe.api import MaskSampler, plugin


@plugin("random")
class RandomMask(MaskSampler):
    """Not the random mask that you expect."""
