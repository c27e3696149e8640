"""What all tests share: a quiet environment, and a small folder of images."""

from __future__ import annotations

import os
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Before torch is imported: two test processes on two cores must not start four threads, and a shell
# that was started by a launcher must not make every test one rank of its job.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
    os.environ.pop(name, None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=0, help="of what tests draw without a generator of their own")


def _seed(node: pytest.Collector | pytest.Item) -> None:
    """Global generators start anew, so that a test draws the same alone, in any order and in any process."""
    import torch

    number = zlib.crc32(node.nodeid.encode()) ^ node.config.getoption("seed")
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Of what a test file draws when it is read, and its fixtures that several tests share."""
    if isinstance(collector, pytest.Module):
        _seed(collector)


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    _seed(request.node)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two class folders of twelve images: smooth colours and noise, several sizes, JPEG and PNG. Read only."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(24):
        width, height = (int(side) for side in rng.integers(24, 64, size=2))
        across = np.linspace(0, 1, width)[None, :, None]
        down = np.linspace(0, 1, height)[:, None, None]
        mix = across if number % 2 else down  # the class shows: one varies across, the other down
        colours = rng.integers(0, 256, size=(2, 3))
        noise = rng.normal(0, 6, size=(height, width, 3))
        pixels = np.clip(colours[0] * mix + colours[1] * (1 - mix) + noise, 0, 255).astype(np.uint8)
        path = folder / ("across" if number % 2 else "down") / f"{number:02d}.{'png' if number % 3 == 0 else 'jpg'}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder
