"""A build says what converting images cost in bytes and in fidelity."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mae_pipe.cli.shard import shard
from mae_pipe.data import fidelity
from mae_pipe.data.manifest import Manifest

IMAGES = 30


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for i in range(IMAGES):
        coarse = Image.fromarray(draw.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        coarse.resize((300, 280), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.jpg", quality=95)
    return folder


def built(photos: Path, out: Path, *options: str) -> tuple[str, Manifest]:
    said = CliRunner().invoke(shard, [str(photos), str(out), "--workers", "1", *options])
    assert said.exit_code == 0, said.output
    return said.output, Manifest.load(out)


def test_files_that_are_kept_cost_nothing_and_nothing_is_said(photos: Path, tmp_path: Path) -> None:
    said, manifest = built(photos, tmp_path / "out")
    split = manifest.split("train")
    assert (split.compared, split.squared_error) == (0, 0.0)
    assert split.source_bytes == sum(path.stat().st_size for path in photos.iterdir())
    assert " dB " not in said
    assert "without loss" not in said


def test_planes_cost_bytes_and_lose_what_a_direct_comparison_finds(photos: Path, tmp_path: Path) -> None:
    said, manifest = built(photos, tmp_path / "out", "--planes")
    split = manifest.split("train")
    assert split.compared == math.ceil(IMAGES / fidelity.SAMPLED)
    errors = []
    for number in range(0, IMAGES, fidelity.SAMPLED):
        with Image.open(photos / f"{number:02d}.jpg") as image:
            rgb = image.convert("RGB")
        luma, *chroma = rgb.convert("YCbCr").split()
        wide = [plane.reduce(2).resize(rgb.size, Image.Resampling.BICUBIC) for plane in chroma]
        y, cb, cr = (np.asarray(plane).astype(float) for plane in (luma, *wide))
        cb, cr = cb - 128, cr - 128
        bands = [y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb]
        back = Image.fromarray(np.rint(np.stack(bands, axis=2)).clip(0, 255).astype(np.uint8))
        views = [p.resize((274, 256), Image.Resampling.BICUBIC).crop((25, 16, 249, 240)) for p in (rgb, back)]
        one, two = (np.asarray(view).astype(float) for view in views)
        errors.append(((one - two) ** 2).mean())
    ours, direct = (10 * math.log10(255**2 / error) for error in (split.squared_error, np.mean(errors)))
    assert ours == pytest.approx(direct, abs=0.05)
    assert f"  {ours:.1f} dB from the originals, in views of 224 pixels of 2 images" in said
    assert "  an image takes 127" in said or "  an image takes 128" in said


def test_a_smaller_picture_is_further_from_the_original(photos: Path, tmp_path: Path) -> None:
    found = []
    for side in ("250", "120"):
        _, manifest = built(photos, tmp_path / side, "--short-side", side)
        found.append(manifest.split("train").squared_error)
    assert 0 < found[0] < found[1]
