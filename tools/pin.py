"""Write requirements/tested.txt: the versions in this environment of all that setup.cfg asks for, to any depth.

Usage: .venv/bin/python tools/pin.py
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAD = "# The versions that we test with, as pip constraints. Written by tools/pin.py.\n"
FOLLOWS_TORCH = re.compile(r"nvidia|cuda|triton")  # torch pins these itself, by platform


def normal(name: str) -> str:
    """A project's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(start: str) -> dict[str, str]:
    """Name -> version of everything that ``start`` with all its extras needs and that is installed."""
    found: dict[str, str] = {}
    left = [start]
    while left:
        name = left.pop()
        try:
            package = distribution(name)
        except PackageNotFoundError:  # for another platform, or of an extra that nobody asked for
            continue
        found[name] = package.version
        for line in package.requires or []:
            needed = re.match(r"[\w.-]+", line)
            assert needed, line
            optional = "extra ==" in line and name != start
            if not optional and (key := normal(needed[0])) not in found and not FOLLOWS_TORCH.search(key):
                left.append(key)
    del found[start]
    return found


if __name__ == "__main__":
    pins = closure("mae-pipe")
    lines = [f"{name}=={version.partition('+')[0]}\n" for name, version in sorted(pins.items())]
    (ROOT / "requirements" / "tested.txt").write_text(HEAD + "".join(lines), encoding="utf-8")
    print(f"{len(lines)} versions")
