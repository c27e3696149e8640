"""The commands of docs/segmentation.md, on a folder laid out as ADE20K's with shapes pasted into it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mae_pipe.catalog import Catalog
from mae_pipe.data import decode
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.shelf import Shelf

PAGE = Path(__file__).parents[1] / "docs" / "segmentation.md"


def pasted(folder: Path) -> None:
    """Grey noise with rectangles, whose class (1 to 3) is their colour; 0 is what nothing was pasted on."""
    draw = np.random.default_rng(5)
    for split, count in (("training", 4), ("validation", 2)):
        for number in range(count):
            image = Image.fromarray(draw.integers(90, 140, (40, 56, 3), dtype=np.uint8))
            map_ = Image.new("L", image.size)
            for class_ in (1, 2, 3):
                left, top = (int(place) for place in draw.integers(0, 30, 2))
                box = (left, top, left + 9, top + 9)
                ImageDraw.Draw(image).rectangle(box, fill=(80 * class_, 0, 0))
                ImageDraw.Draw(map_).rectangle(box, fill=class_)
            for kind, picture, suffix in (("images", image, "jpg"), ("annotations", map_, "png")):
                path = folder / "ADEChallengeData2016" / kind / split / f"{number}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)


def test_the_page_shards_ade20k(tmp_path: Path) -> None:
    pasted(tmp_path)
    (block,) = (text for text in re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.S) if "mae-pipe shard" in text)
    commands = [line for line in block.splitlines() if not line.startswith("mae-pipe finetune")]
    script = "\n".join(line.replace("mae-pipe", f"{sys.executable} -m mae_pipe", 1) for line in commands)
    subprocess.run(["bash", "-ec", script], cwd=tmp_path, check=True, timeout=60)
    shards = tmp_path / "ADE20K" / "shards"
    manifest = Manifest.load(shards)
    assert {name: split.images for name, split in manifest.splits.items()} == {"train": 4, "val": 2}
    assert manifest.map_classes == ["0", "1", "2"]
    shelf = Shelf(shards, "val", Catalog())
    for row in range(2):
        with Image.open(tmp_path / f"ADEChallengeData2016/annotations/val/{row}.png") as picture:
            before = np.asarray(picture).astype(int)
        assert np.array_equal(np.asarray(decode.map_of(shelf.read_map(row))), np.where(before == 0, 255, before - 1))
