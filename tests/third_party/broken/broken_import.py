"""Looks whole in its source; cannot be imported."""

import a_library_that_nobody_has  # type: ignore[import-not-found]  # noqa: F401

from mae_pipe.api import MaskSampler, plugin


@plugin("broken")
class BrokenMask(MaskSampler):
    """Cannot be imported."""
