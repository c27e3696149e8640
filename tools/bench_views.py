"""What DINO's views cost: ours, cut from one decode and coloured by the batch, beside torchvision's transforms.

    python tools/bench_views.py --rounds 7

Of every image two views of 128 pixels and six of 64, with DINO's jitter, loss of colours, blur and solarizing, as
normalised float32 batches. The images are JPEGs of 500 x 375 pixels that it writes (``make_photos.py``). Theirs goes as
DINO's code does, with torchvision v2's transforms: Pillow opens an image once, and each view is made of it by itself.
Both work in this process, in one thread, in turn; counted is time of the processor, which other work disturbs less.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from make_photos import write
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torchvision.transforms import v2

from mae_pipe import recipe
from mae_pipe.api import Batch, Crop, Method, View
from mae_pipe.catalog import Catalog
from mae_pipe.data import region
from mae_pipe.data.order import Share
from mae_pipe.data.stream import open_stream
from mae_pipe.sharding import build

BATCH, LARGE, SMALL, FEW = 64, 128, 64, 6
JITTER, WIDE, NARROW = (0.4, 0.4, 0.2, 0.1), (0.25, 1.0), (0.05, 0.25)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIEWS = (
    Crop(scale=WIDE, jitter=JITTER, grey=0.2, blur=1.0),
    Crop(scale=WIDE, jitter=JITTER, grey=0.2, blur=0.1, solarize=0.2),
    *(Crop(size=SMALL, scale=NARROW, jitter=JITTER, grey=0.2, blur=0.5),) * FEW,
)
PLAIN = tuple(Crop(size=view.size, scale=view.scale) for view in VIEWS)


class Seeing(Method):
    """Nothing but a method's views."""

    def __init__(self, views: tuple[Crop, ...]) -> None:
        super().__init__()
        self.views, self.encoder = views, nn.Identity()
        self.bind(view=View(LARGE, LARGE, (16, 16), MEAN, STD), seed=0)

    def loss(self, batch: Batch) -> Tensor:
        raise NotImplementedError("it is not trained")


def ours(shards: Path, views: tuple[Crop, ...]) -> Iterator[list[Tensor]]:
    method = Seeing(views)
    data = recipe.Data(size=LARGE, workers=0)
    stream = open_stream(shards, "train", data, seed=0, share=Share(micro_batch=BATCH), catalog=Catalog(), views=views)
    with closing(stream), closing(stream.batches()) as batches:  # type: ignore[type-var]
        for batch in batches:
            yield method.images_of(batch)


def theirs(photos: Path) -> Iterator[list[Tensor]]:
    changes = [_theirs(view) for view in VIEWS]
    paths = sorted(photos.rglob("*.jpg"))
    while True:
        random.shuffle(paths)
        for first in range(0, len(paths), BATCH):
            images = (Image.open(path).convert("RGB") for path in paths[first : first + BATCH])
            seen = [[change(image) for change in changes] for image in images]
            yield [torch.stack(view) for view in zip(*seen, strict=True)]


def _theirs(view: Crop) -> Callable[[Image.Image], Tensor]:
    change: Callable[[Image.Image], Tensor] = v2.Compose(
        [
            v2.RandomResizedCrop(view.size or LARGE, scale=view.scale, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(*view.jitter)], view.jitter_share),
            v2.RandomGrayscale(view.grey),
            v2.RandomApply([_blurred], view.blur),
            v2.RandomSolarize(128, view.solarize),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    return change


def _blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))  # noqa: S311 (no secret)


def rate(batches: Iterator[list[Tensor]], images: int) -> float:
    """Images in a second of the processor, after the first batch."""
    next(batches)
    began, count = time.process_time(), -(-images // BATCH)
    for _ in itertools.islice(batches, count):
        pass
    return count * BATCH / (time.process_time() - began)


def three(values: list[float], form: str) -> str:
    return " / ".join(format(value, form) for value in (min(values), statistics.median(values), max(values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=256, help="in a round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        photos, shards = Path(work) / "photos", Path(work) / "shards"
        for number in range(4 * BATCH):
            write(photos, number)
        build(photos, shards, catalog=Catalog(), workers=1)
        ways: dict[str, Callable[[], Iterator[Any]]] = {
            "ours": lambda: ours(shards, VIEWS),
            "ours, colours as they are": lambda: ours(shards, PLAIN),
            "torchvision v2, Pillow": lambda: theirs(photos),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, way in ways.items():
                rates[name].append(rate(way(), options.images))
    print(f"2 views of {LARGE} pixels and {FEW} of {SMALL}, {region.decoder()}")
    print(f"images in a second of one core, min / median / max of {options.rounds} rounds:")
    for name, found in rates.items():
        print(f"{name:28} {three(found, '.0f')}")
    first, _, last = rates.values()
    ratios = [one / other for one, other in zip(first, last, strict=True)]
    print(f"{'ours / torchvision':28} {three(ratios, '.2f')}")


if __name__ == "__main__":
    main()
