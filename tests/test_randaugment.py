"""RandAugment is timm's: the same pixels for the same draws, the same draws in the long run; and by position."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import chisquare, ks_2samp
from timm.data import auto_augment
from timm.data.transforms_factory import create_transform

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.data.fill import Filler, Wanted
from mae_pipe.data.order import Share
from mae_pipe.data.randaugment import RandAugment
from mae_pipe.data.shelf import Shelf
from mae_pipe.data.stream import open_stream
from mae_pipe.errors import RecipeError
from mae_pipe.seeding import key
from mae_pipe.sharding import build
from tests.batches import assert_same, first

PAPERS = "rand-m9-mstd0.5-inc1"
TEXTS = (PAPERS, "rand", "rand-m14-mmax20-n3-p0.8-mstd2", "rand-m9-mstd101-p1-inc1", "rand-m20-mmax20-mstd9-inc1")
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
PIXELS = np.asarray(Image.fromarray(PIXELS).resize((56, 40), Image.Resampling.BICUBIC))


def timms(text: str, size: tuple[int, int] = (40, 56)) -> auto_augment.RandAugment:
    """As timm makes it for a training set of these images."""
    transform = create_transform(size, is_training=True, auto_augment=text, interpolation="bicubic")
    found = next(part for part in transform.transforms if isinstance(part, auto_augment.RandAugment))
    for operation in found.ops:
        if operation.name.startswith("Posterize"):
            operation.aug_fn = posterized
    return found


def posterized(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Pillow's until version 12; since then it refuses to keep no bits, of which timm knows nothing."""
    return image.point([level & -(2 ** max(0, 8 - bits)) for level in range(256)] * 3)


def ours(text: str, **data: object) -> RandAugment:
    return RandAugment(recipe.Data(size=(40, 56), randaugment=text, **data))  # type: ignore[arg-type]


def augmented(augment: RandAugment, pixels: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """[H, W, 3] as timm would give it."""
    planes = pixels.transpose(2, 0, 1).copy()
    augment.change(planes, drawn)
    return planes.transpose(1, 2, 0)


class Told:
    """In place of timm's ``random``: answers in turn."""

    def __init__(self, answers: Iterator[float]) -> None:
        self.answers = answers

    def random(self) -> float:
        return next(self.answers)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.random()

    def gauss(self, mean: float, deviation: float) -> float:
        one, two = self.random(), self.random()
        return mean + deviation * float(np.sqrt(-2 * np.log(1 - one)) * np.cos(2 * np.pi * two))


@pytest.mark.parametrize("text", TEXTS)
def test_the_pixels_are_those_of_timms_operations_with_the_same_draws(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = ours(text), timms(text)
    drawn = mine.draw(key(0, "randaugment"), np.arange(400))
    assert drawn.shape[1] == theirs.num_layers
    changed: Counter[str] = Counter()
    for row in drawn:
        image = Image.fromarray(PIXELS)
        for which, *rest in row.tolist():
            operation = theirs.ops[int(which * len(theirs.ops))]
            monkeypatch.setattr(auto_augment, "random", Told(iter(rest)))
            before, image = image, operation(image)
            changed[operation.name] += image is not before
        assert np.array_equal(augmented(mine, PIXELS, row), np.asarray(image))
    assert set(changed) == {operation.name for operation in theirs.ops}
    assert min(changed.values()) > 0


def test_an_image_of_which_no_bits_are_kept_is_black() -> None:
    """At magnitude 10, which the paper's name draws once in some hundred images: Pillow 13 lets timm fail there."""
    mine = ours("rand-m10-inc1-n1-p1")
    which = [operation.name for operation in timms("rand-inc1").ops].index("PosterizeIncreasing") / 15 + 0.01
    assert not augmented(mine, PIXELS, np.array([[which, 0, 0, 0, 0]])).any()


def applied(augment: Callable[[], object], ops: list[auto_augment.AugmentOp], patch: pytest.MonkeyPatch) -> list[list]:
    """Of every image the operations that were applied, each with its arguments."""
    found: list[list] = []
    for operation in ops:

        def note(image: Image.Image, *given: float, name: str = operation.name, **options: object) -> Image.Image:
            found[-1].append((name, *given))
            return image.copy()

        patch.setattr(operation, "aug_fn", note)
    for _ in range(12000):
        found.append([])
        augment()
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_operations_probabilities_and_magnitudes_are_distributed_as_timms(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    random.seed(0)
    np.random.seed(0)
    small = Image.new("RGB", (2, 2))
    mine, theirs = ours(text), timms(text)
    rows = iter(mine.draw(key(0, "randaugment"), np.arange(12000)))
    pixels = np.asarray(small)
    of_ours = applied(lambda: augmented(mine, pixels, next(rows)), mine._operations, monkeypatch)  # type: ignore[arg-type]
    of_timms = applied(lambda: theirs(small), theirs.ops, monkeypatch)
    how_many = [Counter(len(image) for image in found) for found in (of_ours, of_timms)]
    layers = range(theirs.num_layers + 1)
    expected = np.array([how_many[1][layer] + 1 for layer in layers], float)
    counts = np.array([how_many[0][layer] + 1 for layer in layers], float)
    assert chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-4
    named = [Counter(name for image in found for name, *_ in image) for found in (of_ours, of_timms)]
    assert set(named[0]) == set(named[1]) == {operation.name for operation in theirs.ops}
    assert chisquare(list(named[0].values())).pvalue > 1e-3
    for name in named[0]:
        a, b = (
            [given[0] for image in found for n, *given in image if n == name and given] for found in (of_ours, of_timms)
        )
        assert bool(a) == bool(b)
        assert not a or ks_2samp(a, b, method="asymp").pvalue > 1e-4, name


def test_what_is_drawn_belongs_to_the_position_and_leaves_other_generators_alone() -> None:
    mine = ours(PAPERS)
    among, alone = mine.draw(3, np.arange(100)), mine.draw(3, np.array([17]))
    assert np.array_equal(among[17], alone[0])
    before = random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()
    for row in among:
        augmented(mine, PIXELS, row)
    assert (random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()) == before
    assert vars(auto_augment)["random"] is random


@pytest.fixture(scope="module")
def shards(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("augmented") / "shards"
    build(image_folder, folder, catalog=Catalog(), workers=1)
    return folder


def batches(shards: Path, micro: int, count: int, *, training: bool = True, **data: object) -> list:
    chosen = recipe.Data(size=32, global_batch=12, micro_batch=micro, **data)  # type: ignore[arg-type]
    share, catalog = Share(micro_batch=micro), Catalog()
    return first(open_stream(shards, "train", chosen, seed=3, share=share, catalog=catalog, training=training), count)


def test_threads_processes_and_batches_see_the_same(shards: Path) -> None:
    whole = batches(shards, 12, 2, workers=0, randaugment=PAPERS)
    assert_same(batches(shards, 12, 2, workers=3, randaugment=PAPERS), whole)
    assert_same(batches(shards, 12, 2, workers=2, worker_kind="process", randaugment=PAPERS), whole)
    parts = batches(shards, 4, 3, workers=2, randaugment=PAPERS)
    assert all((part.pixels == whole[0].pixels[4 * n : 4 * n + 4]).all() for n, part in enumerate(parts))


def test_it_comes_after_crop_and_flip_and_not_in_evaluation(shards: Path) -> None:
    plain, changed = (batches(shards, 12, 1, workers=0, randaugment=text)[0] for text in ("", PAPERS))
    mine = RandAugment(recipe.Data(size=32, randaugment=PAPERS))
    drawn = mine.draw(key(3, "randaugment"), plain.positions.numpy())
    for before, after, row in zip(plain.pixels.numpy(), changed.pixels.numpy(), drawn, strict=True):
        seen = before.copy()
        mine.change(seen, row)
        assert np.array_equal(after, seen)
    assert not np.array_equal(plain.pixels, changed.pixels)
    assert_same(*(batches(shards, 12, 1, workers=0, training=False, randaugment=text) for text in ("", PAPERS)))


@pytest.mark.parametrize(
    "text", ["m9", "rand-m9-tweights", "rand-m", "rand-m9-m8", "rand-inc2", "rand-p1.5", "rand-n0", "rand-"]
)
def test_options_that_timm_has_not_or_would_pass_over_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"expected .rand. and options of timm"):
        recipe.load("finetune", [f'data.randaugment="{text}"'])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("data.mean=[0.5]", "data.std=[0.2]"), "for 3 channels, not for 1"),
        (("data.jitter=[0.4, 0.4, 0.4, 0.1]",), "timm has no jitter beside it"),
        (("data.crop=none",), 'no augmentation at all; set crop to "centre", or randaugment to ""'),
        (("data.interpolation=lanczos",), 'cannot by "lanczos"'),
    ],
)
def test_what_does_not_go_with_it_is_refused(changes: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe.load("finetune", [f'data.randaugment="{PAPERS}"', *changes])


def test_segmentation_is_refused_as_maps_would_not_move_with_the_pixels(shards: Path) -> None:
    shelf = Shelf(shards, "train", Catalog())
    data = recipe.Data(size=32, randaugment=PAPERS)
    Filler(shelf, Wanted(shards, "train", (), data, 0, training=False, labels="map"))
    with pytest.raises(RecipeError, match=r"leaves maps where they are; set data.randaugment"):
        Filler(shelf, Wanted(shards, "train", (), data, 0, training=True, labels="map"))
    shelf.close()


def test_a_worker_process_that_augments_imports_no_torch() -> None:
    code = (
        "import sys; from mae_pipe.data import randaugment, worker; from mae_pipe.recipe import Data; "
        "randaugment.RandAugment(Data(randaugment='rand')); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
