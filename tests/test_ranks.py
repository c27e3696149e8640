"""Real processes on real shards measure what one image after the other gives."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mae_pipe.catalog import Catalog
from mae_pipe.data import decode
from mae_pipe.data.shelf import Shelf
from mae_pipe.pixels import normalise
from mae_pipe.sharding import build
from tests.nursing import call
from tests.workers import measure

IMAGES = 11


@pytest.fixture(scope="module")
def shards(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    for number, path in enumerate(sorted(image_folder.rglob("*.*"))):
        split = "val" if number < IMAGES - 3 or number > 20 else "train"
        place = folder / "images" / split / path.parent.name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    build(folder / "images", folder / "shards", catalog=Catalog(), workers=1, per_shard=4)
    return folder / "shards"


@pytest.fixture(scope="module")
def found(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """Number of ranks -> what each of them was told."""
    out = tmp_path_factory.mktemp("ranks") / "told.json"
    call(measure, shards, out)
    return {int(world): told for world, told in json.loads(out.read_text()).items()}


@torch.no_grad()
def counted(shards: Path) -> dict[str, float]:
    """Image by image, without a stream."""
    shelf = Shelf(shards, "val", Catalog())
    task = measure.untrained().eval()
    top1 = top5 = 0
    loss = 0.0
    for number, label in enumerate(shelf.index.label.tolist()):
        pixels = torch.from_numpy(decode.centred(decode.picture(shelf.read(number)), 16, 1.0).copy())
        images = normalise(pixels.permute(2, 0, 1)[None], task.mean, task.std)
        output = task.head(task.encoder(images))
        best = output[0].sort(descending=True).indices.tolist()
        top1 += best[0] == label
        top5 += label in best[:5]
        loss += F.cross_entropy(output, torch.tensor([label])).item()
    return {"loss": loss / IMAGES, "top1": top1 / IMAGES, "top5": top5 / IMAGES}


def test_any_number_of_ranks_gives_the_numbers_of_a_direct_count(
    shards: Path, found: dict[int, list[dict[str, Any]]]
) -> None:
    expected = counted(shards)
    assert set(found) == {1, 2, 3}
    assert 0 < expected["top1"] < expected["top5"] < 1  # else a miscount might not show
    for world, told in found.items():
        for one in told:
            assert one["task"]["top1"] == expected["top1"], world
            assert one["task"]["top5"] == expected["top5"], world
            assert one["task"]["loss"] == pytest.approx(expected["loss"], rel=1e-6), world


def test_every_rank_of_every_world_is_told_the_same_to_the_last_bit(found: dict[int, list[dict[str, Any]]]) -> None:
    values = measure.marks(torch.arange(IMAGES))
    exact = {name: exactly(v).tolist() for name, v in values.items()}
    assert {json.dumps(one["marks"]) for told in found.values() for one in told} == {json.dumps(exact)}


def exactly(values: Tensor) -> Tensor:
    """[images, ...] -> [...] float64: the mean by fractions, rounded once."""
    columns = values.flatten(1).T.tolist() if values.dim() > 1 else [values.tolist()]
    means = [float(sum(map(Fraction, column)) / IMAGES) for column in columns]
    return torch.tensor(means, dtype=torch.float64).reshape(values.shape[1:])


@torch.no_grad()
def test_neighbours_are_the_same_on_any_number_of_ranks(shards: Path, found: dict[int, list[dict[str, Any]]]) -> None:
    shelf = Shelf(shards, "train", Catalog())
    task = measure.untrained("knn", k=3, others=[5]).eval()
    vectors = []
    for number in range(len(shelf.index)):
        pixels = torch.from_numpy(decode.centred(decode.picture(shelf.read(number)), 16, 1.0).copy())
        tokens = task.encoder(normalise(pixels.permute(2, 0, 1)[None], task.mean, task.std))
        vectors.append(F.normalize(tokens[0, 1:].mean(0), dim=0))
    bank = torch.stack(vectors)
    for world, told in found.items():
        for one in told:
            assert torch.allclose(torch.tensor(one["bank"][0]), bank, atol=1e-6), world
            assert one["bank"][1] == shelf.index.label.tolist(), world
            assert one["neighbours"] == pytest.approx(found[1][0]["neighbours"], rel=1e-6), world
    assert {"loss", "top1", "top5", "top1_k5"} == set(found[1][0]["neighbours"])


def test_running_statistics_become_those_of_all_ranks(found: dict[int, list[dict[str, Any]]]) -> None:
    for world, told in found.items():
        assert [one["mean"] for one in told] == [[(world - 1) / 2] * 2] * world


def test_every_rank_is_told_the_maxima_of_all_one_call_later(found: dict[int, list[dict[str, Any]]]) -> None:
    unsaid = dict.fromkeys(("stop", "most", "least"), -99)
    for world, told in found.items():
        maxima = [{"stop": int(n >= 2), "most": 10 * n + world - 1, "least": -10 * n} for n in range(5)]
        expected = [*maxima, unsaid] if world == 1 else [unsaid, *maxima]
        assert [rank["agreed"] for rank in told] == [expected] * world


def test_a_monitor_reads_the_same_on_any_number_of_ranks(found: dict[int, list[dict[str, Any]]]) -> None:
    alone = found[1][0]["reading"]
    assert alone.keys() == {"held_out_loss", "rankme", "cosine", "alignment", "uniformity", "knn"}
    assert alone["alignment"] > 0
    for told in found.values():
        assert told[0]["reading"] == pytest.approx(alone, rel=1e-5)
        assert all(one["reading"] == {} for one in told[1:])
