"""What RandAugment costs: our loader beside torchvision's ImageFolder with timm's transforms, on the same images.

    python tools/make_photos.py PHOTOS --images 1000
    python tools/bench_augment.py PHOTOS

Every round begins every loader anew, in turn, with one worker: a thread or process of ours, a process of torch's.
Crops of 224 pixels by bicubic, a flip, batches of 64 8-bit images; counted is from the second batch on. And, in time of
the processor, which other work on the machine disturbs less: RandAugment by itself, ours and timm's, on the same views.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.transforms_factory import create_transform
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.data import region
from mae_pipe.data.order import Share
from mae_pipe.data.randaugment import RandAugment
from mae_pipe.data.stream import open_stream
from mae_pipe.sharding import build

SIZE, BATCH, NAME = 224, 64, "rand-m9-mstd0.5-inc1"
SCALE = (0.08, 1.0)


def ours(shards: Path, name: str, kind: str) -> Iterator[Any]:
    chosen: dict[str, Any] = {"worker_kind": kind, "randaugment": name, "crop_scale": SCALE}
    data = recipe.Data(size=SIZE, workers=1, **chosen)
    stream = open_stream(shards, "train", data, seed=0, share=Share(micro_batch=BATCH), catalog=Catalog())
    with closing(stream), closing(stream.batches()) as batches:  # type: ignore[type-var]
        yield from batches


def theirs(photos: Path, name: str) -> Iterator[Any]:
    # use_prefetcher: 8-bit pixels, as ours; they are normalised on the device.
    change = create_transform(
        SIZE, is_training=True, use_prefetcher=True, color_jitter=0.0, scale=SCALE, interpolation="bicubic",
        auto_augment=name or None,
    )  # fmt: skip
    loader = DataLoader(
        ImageFolder(str(photos), Bearing(change)),
        BATCH,
        shuffle=True,
        num_workers=1,
        worker_init_fn=lambda _: torch.set_num_threads(1),
    )
    while True:
        yield from loader


def rate(loader: Iterator[Any], images: int) -> float:
    """Images a second after the first batch."""
    with closing(loader) as batches:  # type: ignore[type-var]
        next(batches)
        began, count = time.perf_counter(), -(-images // BATCH)
        for _ in itertools.islice(batches, count):
            pass
        return count * BATCH / (time.perf_counter() - began)


def alone(photos: Path) -> tuple[float, float]:
    """Milliseconds of the processor a view, ours and timm's, each as its loader has the pixels."""
    paths = itertools.islice(sorted(photos.rglob("*.*")), 200)
    views = [Image.open(path).convert("RGB").resize((SIZE, SIZE)) for path in paths]
    planes = [np.ascontiguousarray(np.asarray(view).transpose(2, 0, 1)) for view in views]
    augment = RandAugment(recipe.Data(randaugment=NAME))
    settings = {"img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC}
    transform = Bearing(rand_augment_transform(NAME, settings))
    drawn = augment.draw(0, np.arange(len(views)))

    def mine() -> None:
        for seen, row in zip(planes, drawn, strict=True):
            augment.change(seen, row)

    def timms() -> None:
        for view in views:
            transform(view)

    return spent(mine) / len(views), spent(timms) / len(views)


class Bearing:
    """timm's transform; where Pillow 13 lets it fail, as no bits of an image are to be kept, it draws again."""

    def __init__(self, transform: Callable[[Any], Any]) -> None:
        self.transform = transform

    def __call__(self, image: Any) -> Any:
        try:
            return self.transform(image)
        except ValueError:
            return self(image)


def spent(work: Callable[[], None]) -> float:
    began = time.thread_time()
    work()
    return 1000 * (time.thread_time() - began)


def three(values: list[float], form: str = ".0f") -> str:
    return " / ".join(format(value, form) for value in (min(values), statistics.median(values), max(values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="a folder of CLASS/IMAGE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=512, help="in a round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        shards = Path(work) / "shards"
        build(options.photos, shards, catalog=Catalog(), workers=1)
        ways: dict[str, Callable[[], Iterator[Any]]] = {
            "ours, a thread": lambda: ours(shards, "", "thread"),
            "ours, a thread, RandAugment": lambda: ours(shards, NAME, "thread"),
            "ours, a process, RandAugment": lambda: ours(shards, NAME, "process"),
            "ImageFolder": lambda: theirs(options.photos, ""),
            "ImageFolder, timm's RandAugment": lambda: theirs(options.photos, NAME),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        single: list[tuple[float, float]] = []
        for _ in range(options.rounds):
            for name, way in ways.items():
                rates[name].append(rate(way(), options.images))
            single.append(alone(options.photos))
    print(f"{NAME}, {SIZE} pixels, one worker, {region.decoder()}")
    print(f"images/s, min / median / max of {options.rounds} rounds:")
    for name, found in rates.items():
        print(f"{name:32} {three(found)}")
    print("RandAugment by itself, ms of the processor a view:")
    for name, column in zip(("ours", "timm's"), zip(*single, strict=True), strict=True):
        print(f"{name:32} {three(list(column), '.2f')}")


if __name__ == "__main__":
    main()
