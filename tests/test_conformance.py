"""The conformance suite passes what is right, and each check finds the defect that it is there for."""

# ruff: noqa: E501 (the table of defects reads better in lines)

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mae_pipe import testing
from mae_pipe.catalog import Catalog
from tests import faulty_methods

MASK = '''
"""A sampler."""
import random
import time
import numpy
import torch
from mae_pipe.api import Grid, MaskSampler, Rng, plugin

@plugin("it")
class It(MaskSampler):
    """Hide patches.

    Options:
        pull: how much.
    """
    def __init__(self, pull: float = 1.0) -> None:
        self.pull = pull
        self.calls = 0
    def scores(self, images, grid, rng):
        places = torch.arange(grid.size, device=images.device)
        return rng.uniform(grid.size) - self.pull * places
'''

TARGET = '''
"""A target."""
import random
import numpy
import torch
from torch import nn
from mae_pipe.api import Target, View, patchify, plugin, unpatchify

@plugin("it")
class It(Target):
    """Predict scaled pixels less their mean.

    Options:
        scale: of the pixels.
    """
    fit_images = 32
    def __init__(self, scale: float = 2.0, *, view: View) -> None:
        super().__init__()
        self.scale, self.view, self.width = scale, view, view.numbers
        self.register_buffer("mean", torch.zeros(view.numbers))
    def fit(self, images):
        self.mean.copy_(torch.cat([patchify(batch, self.view.patch) for batch in images]).mean((0, 1)) + 1.3)
    def truth(self, images):
        return self.scale * (patchify(images, self.view.patch).float() - self.mean.float())
    def loss(self, prediction, truth):
        return (prediction.float() - truth).square().mean(-1)
    def picture(self, prediction, images):
        pixels = prediction / self.scale + self.mean.float()
        return unpatchify(pixels, self.view.patch, self.view.grid.rows, self.view.grid.cols)
'''

HEAD = '''
"""A head."""
import random
import numpy
import torch
from torch import nn
from torch.nn import functional as F
from mae_pipe.api import Head, plugin

@plugin("it")
class It(Head):
    """Classify the mean of the tokens.

    Options:
        dropout: share.
    """
    def __init__(self, dropout: float = 0.1, *, width: int, classes: int, class_tokens: int) -> None:
        super().__init__()
        self.skipped = class_tokens
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(dropout)
        self.layer = nn.Linear(width, classes)
    def forward(self, tokens):
        return self.layer(self.drop(self.norm(tokens[:, self.skipped:].mean(1))))
    def loss(self, output, labels):
        return F.cross_entropy(output.float(), labels, reduction="none")
    def metrics(self, output, labels):
        return {"top1": (output.argmax(1) == labels).float()}
'''

SHARDS = '''
"""A format."""
import os
import random
import zlib
from mae_pipe.api import DataError, Placed, Sample, ShardFormat, ShardReader, plugin

@plugin("it")
class It(ShardFormat):
    """Bytes behind bytes."""
    suffix = ".it"
    def write(self, path, samples):
        places, file = [], open(path, "wb")
        with file:
            file.write(b"it")
            for sample in samples:
                start, map_ = file.tell(), None
                file.write(sample.image)
                if sample.map is not None:
                    map_ = Placed(file.tell(), len(sample.map), zlib.crc32(sample.map), "png")
                    file.write(sample.map)
                places.append(Placed(start, len(sample.image), zlib.crc32(sample.image), sample.encoding, map_))
        return places
    def open(self, path):
        return Reader(path)

class Reader(ShardReader):
    def __init__(self, path):
        self.path = path
        if self.bytes(0, 2) != b"it":
            raise DataError(f"{path} is damaged")
    def bytes(self, start, size):
        try:
            with open(self.path, "rb") as file:
                file.seek(start)
                return file.read(size)
        except OSError as error:
            raise DataError(f"{self.path} cannot be read") from error
    def read(self, number, placed):
        data = self.bytes(placed.offset, placed.size)
        if len(data) != placed.size:
            raise DataError(f"{self.path} is cut")
        return data
'''

RIGHT = {"mask": MASK, "target": TARGET, "head": HEAD, "shards": SHARDS, "method": faulty_methods.METHOD}
SCORES = "rng.uniform(grid.size) - self.pull * places"
TRUTH = "self.scale * (patchify(images, self.view.patch).float() - self.mean.float())"
LOSS = "(prediction.float() - truth).square().mean(-1)"
CROSS = 'F.cross_entropy(output.float(), labels, reduction="none")'
FORWARD = "self.layer(self.drop(self.norm(tokens[:, self.skipped:].mean(1))))"
READ = 'with open(self.path, "rb") as file:\n                file.seek(start)\n                return file.read(size)\n'
RACE = "; os.lseek(self.file, start, 0); os.sched_yield(); return os.read(self.file, size)\n"
RACE = RACE.replace("; ", "\n            ")
GONE = (
    "        self.last = bytearray(data)\n        return memoryview(self.last)\n"
    "    def close(self):\n        self.last[:] = bytes(len(self.last))\n"
)
OUT = "def scores(self, images, grid, rng):\n"

WRONG = [
    ("mask", "is built", "self.calls = 0", "raise ValueError('never')", "refuses its options: never"),
    ("mask", "documented", "        pull: how much.\n", "", "says nothing of pull; write a line"),
    ("mask", "documented", "pull: float = 1.0", "pull=1.0", "says no type for pull"),
    ("mask", "documented", '    """Hide patches.\n\n    Options:\n        pull: how much.\n    """\n', "", "no docstring"),
    ("mask", "refuses wrong options", "pull: float = 1.0", "pull: float = 1.0, **more", "a user mistypes would pass"),
    ("mask", "imports public names", "import time", "from mae_pipe.masking import Mask", "imports mae_pipe.masking, wh"),
    ("mask", "imports public names", "import time", "from mae_pipe import rng", "imports mae_pipe.rng, which may"),
    ("mask", "shapes", SCORES, f"({SCORES})[:1]", r"gave shape \[1, 1\], expected \[6, 1\]"),
    ("mask", "shapes", SCORES, f"({SCORES}).double()", "float64, expected float32"),
    ("mask", "shapes", SCORES, f"({SCORES}).log()", "not finite"),
    ("mask", "leaves images alone", SCORES, SCORES + " + images.mul_(2).sum() * 0", "changed the images"),
    ("mask", "ignores global randomness", SCORES, f"{SCORES} + torch.rand(1)", "PyTorch's global generator"),
    ("mask", "ignores global randomness", SCORES, f"{SCORES} + random.random()", "Python's global generator"),
    ("mask", "ignores global randomness", SCORES, f"{SCORES} + numpy.random.rand()", "NumPy's global generator"),
    ("mask", "repeats itself", OUT, OUT + "        self.pull += 1\n", "other scores for the same images"),
    ("mask", "repeats itself", "self.calls = 0", "self.pull = time.perf_counter()", "when it was built again"),
    ("mask", "depends on its image alone", SCORES, f"{SCORES} + images.mean()", "depends on the other images"),
    ("mask", "honours the ratio", SCORES, f"({SCORES})[:, :-1]", r"hides .* at ratio|expected"),
    ("mask", "follows devices", ", device=images.device", "", "mixes devices"),
    ("mask", "follows devices", SCORES, f"({SCORES}).cpu()", "scores is on cpu where its inputs are on cuda"),
    ("mask", "is bf16 safe", SCORES, f"({SCORES}).to(images.dtype)", "bfloat16, expected float32"),
    ("mask", "compiles", SCORES, f"{SCORES} if float(images.sum()) > 0 else {SCORES}", "breaks the graph"),
    ("mask", "trains under zero 3", SCORES, f"({SCORES})[:, :2]", "under ZeRO 3: PluginError: the mask sampler It gave"),
    ("target", "is built", "super().__init__()\n", "super().__init__()\n        assert False, view\n", "AssertionError"),
    ("target", "is frozen", "self.register_buffer", "self.layer = nn.Linear(2, 2)\n        self.register_buffer", "layer.w"),
    ("target", "is frozen", TRUTH, f"{TRUTH} + self.training", "another in training mode"),
    ("target", "shapes", "view.numbers\n", "0\n", "width is 0"),
    ("target", "shapes", TRUTH, f"({TRUTH}).half()", "float16, expected float32 or int64"),
    ("target", "shapes", TRUTH, f"({TRUTH}).argmax(-1) - 900", "tokens outside of 0 to"),
    ("target", "shapes", LOSS, LOSS.replace("-1", ""), r"loss gave shape \[\]"),
    ("target", "shapes", "self.view.grid.cols)", "self.view.grid.cols)[:, :, 1:]", "picture gave shape"),
    ("target", "leaves images alone", TRUTH, TRUTH.replace("images", "images.mul_(2)"), "truth changed the images"),
    ("target", "leaves images alone", "pixels = prediction", "images.zero_(); pixels = prediction", "picture changed"),
    ("target", "ignores global randomness", LOSS, f"{LOSS} + random.random()", "It.loss drew from Python's"),
    ("target", "ignores global randomness", TRUTH, f"{TRUTH} + torch.rand(1)", "It.truth drew from PyTorch's"),
    ("target", "ignores global randomness", "super().__init__()", "super().__init__(); random.random()", "building it dr"),
    ("target", "repeats itself", TRUTH, f"{TRUTH} + torch.rand(1)", "other numbers for the same images"),
    ("target", "depends on its image alone", TRUTH, f"{TRUTH} + images.mean()", "depends on the others of its batch"),
    ("target", "judges each patch by itself", LOSS, f"{LOSS} + prediction.mean()", "only hidden patches are passed"),
    ("target", "has finite gradients", LOSS, f"{LOSS}.sqrt()", "no finite gradient for perfect predictions"),
    ("target", "has finite gradients", LOSS, f"{LOSS}.detach()", "no finite gradient for random predictions"),
    ("target", "keeps its state", 'numbers))\n', 'numbers), persistent=False)\n', "by way of a checkpoint"),
    ("target", "keeps its state", "self.mean.copy_(", "self.register_buffer('far', self.mean + 1); self.mean.copy_(", "far"),
    ("target", "says where it comes from", "    def fit", "    def provenance(self): return {'a': 1}\n    def fit", "strin"),
    ("target", "follows devices", TRUTH, f"{TRUTH} + torch.ones(self.width)", "mixes devices"),
    ("target", "is bf16 safe", "    def fit", "    _apply = nn.Module._apply\n    def fit", "truth is another in a bfloat16"),
    ("target", "is bf16 safe", TRUTH, f"{TRUTH} @ torch.eye(self.width)", "truth is torch.bfloat16 under autocast"),
    ("target", "is bf16 safe", "prediction.float() - truth", "prediction - truth.to(prediction.dtype)", "bfloat16, expec"),
    ("target", "is bf16 safe", "prediction.float() - truth", "prediction @ torch.eye(self.width) - truth", "fails in a bf"),
    ("target", "compiles", LOSS, f"{LOSS} if float(truth.sum()) else {LOSS}", "It.loss breaks the graph"),
    ("head", "is built", "super().__init__()", "super().__init__(); raise TypeError('never')", "never"),
    ("head", "shapes", CROSS, CROSS.replace("none", "mean"), r"loss gave shape \[\], expected \[6\]"),
    ("head", "shapes", CROSS, f"{CROSS}.double()", "float64, expected float32"),
    ("head", "shapes", '{"top1": (output.argmax(1) == labels).float()}', "{}", "metrics gave nothing"),
    ("head", "shapes", "== labels).float()", "== labels).float().mean()", r"shape \[\], expected \[6\] or \[6, ...\]"),
    ("head", "trains", "self.layer = ", "self.idle = nn.Linear(2, 2)\n        self.layer = ", r"\['idle.weight', 'idle.b"),
    ("head", "trains", CROSS, f"{CROSS}.detach() + 0 * output.sum(-1)", "does not learn"),
    ("head", "takes mixed labels", CROSS, f"{CROSS} + labels.dim() - 1", "labels as shares"),
    ("head", "depends on its image alone", FORWARD, f"{FORWARD} + tokens.mean()", "another output in another batch"),
    ("head", "depends on its image alone", "(output.argmax(1) == labels)", "output[:, 0].argsort()", "depends on its bat"),
    ("head", "repeats itself", FORWARD, f"{FORWARD} + random.random()", "another output for the same tokens"),
    ("head", "ignores global randomness", FORWARD, f"{FORWARD} + numpy.random.rand()", "It drew from NumPy's"),
    ("head", "ignores global randomness", FORWARD, f"{FORWARD} + torch.rand(1)", "It drew from PyTorch's"),
    ("head", "keeps its state", "nn.Dropout(dropout)", "(lambda x, y=torch.rand(1): x + y)", "by way of a checkpoint"),
    ("head", "reports its main metric", '"top1":', '"accuracy":', "main is 'top1', and its summary has loss, accuracy"),
    ("head", "follows devices", FORWARD, f"{FORWARD} + torch.ones(1, device='cpu').expand(2)[:1]", "mixes devices"),
    ("head", "is bf16 safe", "output.float()", "output", "bfloat16, expected float32"),
    ("head", "is bf16 safe", ".mean(1)", ".mean(1).float()", "fails in a bfloat16 engine"),
    ("head", "compiles", FORWARD, f"{FORWARD} if float(tokens.sum()) else {FORWARD}", "breaks the graph"),
    ("shards", "says its suffix", '".it"', '"it"', "suffix is 'it', expected something such as '.tar'"),
    ("shards", "gives back what it was given", "zlib.crc32(sample.image)", "0", "does not have the crc32 of its place"),
    ("shards", "gives back what it was given", "file.tell()", "9", "does not have the crc32 of its place"),
    ("shards", "gives back what it was given", "return places", "return places[:-1]", "11 places for 12 samples"),
    ("shards", "keeps maps", "sample.map is not None", "False", "the map of sample 0 has no place; write sample.map"),
    ("shards", "keeps maps", "zlib.crc32(sample.map)", "0", "map of sample 0 does not have the size and crc32"),
    ("shards", "keeps any channels", "file.write(sample.image)", "file.write(sample.image[::-1] if sample.channels > 3 else sample.image)", "array 0 does not have the crc32"),
    ("shards", "writes the same again", 'b"it"', 'b"it" + os.urandom(9)', "other bytes for the same samples"),
    ("shards", "is read by threads", READ, f"if not hasattr(self, 'file'): self.file = os.open(self.path, 0){RACE}", "four t"),
    ("shards", "outlives its reader", "        return data\n", GONE, "bytes that were read change when the reader is closed"),
    ("shards", "names damage", 'raise DataError(f"{self.path} is cut")', "raise IndexError", "cut raised IndexError"),
    ("shards", "names damage", 'raise DataError(f"{self.path} is cut")', "pass", "cut said nothing; raise a DataError"),
    ("shards", "ignores global randomness", 'file.write(b"it")', 'file.write(b"it"); random.random()', "Python's"),
    *(("method", *defect) for defect in faulty_methods.WRONG),
]  # fmt: skip


def result_of(tmp_path: Path, kind: str, check: str, text: str) -> testing.Result:
    (tmp_path / "it.py").write_text(text)
    return testing.run_check(kind, "it", check, catalog=Catalog(files=(tmp_path / "it.py",)))


@pytest.mark.parametrize("kind", RIGHT)
def test_what_is_right_passes(tmp_path: Path, kind: str) -> None:
    (tmp_path / "it.py").write_text(RIGHT[kind])
    results = list(testing.run(kind, "it", catalog=Catalog(files=(tmp_path / "it.py",)), fast=True))
    assert [r.check for r in results] == testing.checks(kind)
    assert {r.check: r.detail for r in results if r.outcome == "failed"} == {}
    assert [r.check for r in results if r.outcome == "skipped"] == (["trains under zero 3"] if kind != "shards" else [])


@pytest.mark.parametrize(("kind", "check", "old", "new", "why"), WRONG)
def test_each_check_finds_its_defect(tmp_path: Path, kind: str, check: str, old: str, new: str, why: str) -> None:
    right = RIGHT[kind]
    assert old in right
    result = result_of(tmp_path, kind, check, right.replace(old, new))
    assert result.outcome == "failed", result.detail
    assert re.search(why, result.detail), result.detail
    assert "\n" not in result.detail


def test_every_check_has_a_defect_that_it_finds() -> None:
    found = {(kind, check) for kind, check, *_ in WRONG}
    every = {(kind, check) for kind in RIGHT for check in testing.checks(kind)}
    shared = {"is built", "documented", "refuses wrong options", "imports public names", "trains under zero 3"}
    assert {check for _, check in every - found} <= shared
    assert shared <= {check for _, check in found}
