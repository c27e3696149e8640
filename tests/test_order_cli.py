"""``mae-pipe order`` says what a stream gives."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.cli.order import order
from mae_pipe.data.order import Share
from mae_pipe.data.stream import open_stream
from mae_pipe.sharding import build


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("order")
    draw = np.random.default_rng(0)
    for i in range(13):
        path = folder / "images" / f"class{i % 2}" / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(draw.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)
    build(folder / "images", folder / "shards", catalog=Catalog(), workers=1, per_shard=4)
    return folder / "shards"


@pytest.mark.parametrize("repeats", [1, 2])
def test_it_prints_what_every_rank_of_a_job_is_given(shards: Path, repeats: int) -> None:
    ranks, micro, epoch, start = 3, 2, 2, 5
    first = epoch * 13 * repeats + start
    expected: dict[int, tuple[int, str]] = {}
    for rank in range(ranks):
        data = recipe.Data(size=16, workers=0, repeats=repeats)
        share = Share(rank, ranks, micro)
        stream = open_stream(shards, "train", data, seed=9, share=share, catalog=Catalog())
        begin = first // share.advance * share.advance
        for batch in itertools.islice(stream.batches(begin), 4):
            for position, number in zip(batch.positions.tolist(), batch.numbers.tolist(), strict=True):
                expected[position] = rank, stream.index.key(number)
        stream.close()
    asked = [str(shards), "--epoch", str(epoch), "--start", str(start), "--head", "12", "--seed", "9", "--tsv"]
    asked += ["--ranks", str(ranks), "--micro-batch", str(micro), "--repeats", str(repeats)]
    said = CliRunner().invoke(order, asked)
    assert said.exit_code == 0, said.output
    header, *lines = (line.split("\t") for line in said.output.splitlines())
    assert header == ["position", "rank", "key", "class", "shard"]
    assert [int(line[0]) for line in lines] == list(range(first, first + 12))
    for place, process, key, name, shard in lines:
        assert (int(process), key) == expected[int(place)]
        assert key.startswith(f"{name}/")
        assert shard.startswith("train-00000")


def test_it_shows_a_table_that_says_how_it_was_asked(shards: Path) -> None:
    said = CliRunner().invoke(order, [str(shards), "--head", "3"])
    assert said.exit_code == 0, said.output
    assert "epoch 0 of 13 images of train, seed 0, shuffled as a whole, rule 1" in said.output
