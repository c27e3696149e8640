"""Maps measured on whole images by sliding windows, against a slow count in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mae_pipe import recipe, sliding
from mae_pipe.catalog import Catalog
from mae_pipe.data.batch import Batch
from mae_pipe.data.order import Share
from mae_pipe.data.stream import Stream, open_stream
from mae_pipe.sharding import build

SIZES = ((40, 30), (16, 24), (9, 11), (33, 57), (24, 16))  # width, height; windows are 16 high and 24 wide
DATA = recipe.Data(size=(16, 24), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), workers=0, interpolation="bilinear")
CLASSES = 11


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("whole"), np.random.default_rng(1)
    for kind in ("images", "maps"):
        (folder / kind / "val").mkdir(parents=True)
    for number, (width, height) in enumerate(SIZES):
        pixels, numbers = draw.integers(0, 256, (height, width, 3)), draw.integers(0, CLASSES, (height, width))
        numbers[draw.random((height, width)) < 0.1] = 255
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / "val" / f"{number}.png")
        Image.fromarray(numbers.astype(np.uint8)).save(folder / "maps" / "val" / f"{number}.png")
    build(folder / "images", folder / "shards", catalog=Catalog(), workers=1, maps=folder / "maps")
    return folder


class Scores(nn.Module):
    """Scores of a window that depend on where in it a pixel is, so that windows which overlap disagree."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(2)
        self.mix = torch.randn(CLASSES, 3, generator=draw) / 100
        self.place = torch.randn(CLASSES, 16, 24, generator=draw) / 2
        self.calls = 0

    def forward(self, batch: Batch, *, mode: str) -> Tensor:
        assert mode == "scores"
        self.calls += 1
        return torch.einsum("kc,bchw->bkhw", self.mix, batch.pixels.float()) + self.place


def bilinear(scores: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """[C, h, w] -> [C, H, W]: pixel centres, edges repeated."""
    for axis, wanted in ((1, size[0]), (2, size[1])):
        length = scores.shape[axis]
        at = np.clip((np.arange(wanted) + 0.5) * length / wanted - 0.5, 0, None)
        low = np.minimum(np.floor(at).astype(int), length - 1)
        share = (at - low).reshape((-1, 1) if axis == 1 else (-1,))
        high = np.minimum(low + 1, length - 1)
        scores = scores.take(low, axis) * (1 - share) + scores.take(high, axis) * share
    return scores


def slowly(folder: Path, model: Scores, stride: tuple[int, int], short_side: int | None) -> NDArray[np.int64]:
    """[C, C]: one image, one window, one pixel after the other."""
    matrix = np.zeros((CLASSES, CLASSES), np.int64)
    for number in range(len(SIZES)):
        image = Image.open(folder / "images" / "val" / f"{number}.png").convert("RGB")
        truth = np.asarray(Image.open(folder / "maps" / "val" / f"{number}.png"))
        if short_side:
            scale = short_side / min(image.size)
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        pixels = np.asarray(image).astype(np.float64)
        height, width = pixels.shape[:2]
        sums, seen = np.zeros((CLASSES, height, width)), np.zeros((height, width))
        tops = {min(top, max(0, height - 16)) for top in range(0, height, stride[0])}
        lefts = {min(left, max(0, width - 24)) for left in range(0, width, stride[1])}
        for top in tops:
            for left in lefts:
                for y in range(top, min(top + 16, height)):
                    for x in range(left, min(left + 24, width)):
                        place = model.place[:, y - top, x - left].double().numpy()
                        sums[:, y, x] += model.mix.double().numpy() @ pixels[y, x] + place
                        seen[y, x] += 1
        guess = bilinear(sums / seen, truth.shape).argmax(0)
        for y, x in np.argwhere(truth != 255):
            matrix[truth[y, x], guess[y, x]] += 1
    return matrix


def opened(folder: Path, share: Share) -> Stream:
    return open_stream(
        folder / "shards", "val", DATA, seed=0, share=share, catalog=Catalog(), training=False, labels="map"
    )


@pytest.mark.parametrize(
    ("stride", "short_side"), [((16, 24), None), ((11, 7), None), ((5, 24), 20), ((11, 16), 12), ((16, 16), 41)]
)
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_pixel_of_every_image_counts_once_as_a_slow_count_in_numpy_says(
    stride: tuple[int, int], short_side: int | None, world: int, shards: Path
) -> None:
    counts, calls = torch.zeros(CLASSES, CLASSES, dtype=torch.int64), set()
    for rank in range(world):  # without a process group each gives its own part
        stream, model = opened(shards, Share(rank, world, 3)), Scores()
        counts += sliding.Slider(stream, recipe.Sliding(stride=stride, short_side=short_side), CLASSES).confusion(model)
        calls.add(model.calls)
        stream.close()
    assert len(calls) == 1  # what ZeRO 3 waits for
    slow = slowly(shards, Scores(), stride, short_side)
    assert int(counts.sum()) == slow.sum()
    assert int((counts - torch.from_numpy(slow)).abs().sum()) <= 4  # scores that differ in the last bit of float32


def test_windows_cover_a_side_and_the_last_ends_with_it() -> None:
    assert sliding.places(683, 512, 341) == [0, 171]
    assert sliding.places(2048, 512, 341) == [0, 341, 682, 1023, 1364, 1536]
    assert sliding.places(512, 512, 341) == sliding.places(100, 512, 341) == [0]
    assert sliding.places(853, 512, 341) == [0, 341]


def test_the_measures_are_those_of_the_formulas() -> None:
    matrix = np.random.default_rng(4).integers(0, 2**40, (5, 5))
    matrix[3] = matrix[:, 3] = 0  # in no map, and nobody says it
    matrix[4] = 0  # said, and in no map
    jaccard = [matrix[k, k] / (matrix[k].sum() + matrix[:, k].sum() - matrix[k, k]) for k in (0, 1, 2, 4)]
    found = sliding.measures(torch.from_numpy(matrix))
    assert found["miou"] == pytest.approx(np.mean(jaccard), abs=1e-12)
    assert found["mean_accuracy"] == pytest.approx(np.mean([matrix[k, k] / matrix[k].sum() for k in range(3)]))
    assert found["pixel_accuracy"] == pytest.approx(matrix.trace() / matrix.sum(), abs=1e-12)
    assert sliding.measures(torch.zeros(2, 2, dtype=torch.int64))["pixel_accuracy"] == 0.0


def test_the_best_class_of_an_enlarged_image_is_found_a_few_classes_at_a_time() -> None:
    scores = torch.randn(20, 7, 9, generator=torch.Generator().manual_seed(3)).round()  # many are equal
    whole = nn.functional.interpolate(scores[None], (13, 31), mode="bilinear", align_corners=False)[0].argmax(0)
    assert torch.equal(sliding.largest(scores, (13, 31)), whole)
    assert sliding.resized(683, 1024, 512) == (512, 768)
