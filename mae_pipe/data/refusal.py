"""Why an image is in no shard."""

from __future__ import annotations


class Refusal(Exception):
    """Why an image is not admitted, in a few words."""
