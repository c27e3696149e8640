"""How many shard files a process may hold open."""

from __future__ import annotations

import resource

SPARE = 256  # for everything else that a training process opens
MOST = 1 << 16  # where there is no limit


def allowed() -> int:
    """Raise the limit of open files as far as the user may, and say how many of them shards may take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST + SPARE if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (ValueError, OSError):  # a sandbox that allows no change
            pass
    return MOST if soft == resource.RLIM_INFINITY else max(8, min(MOST, soft - SPARE))
