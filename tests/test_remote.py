"""Shards at a URL give the batches of shards in a folder, whatever happens on the way."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.cli import order as order_cli
from mae_pipe.cli import shard as shard_cli
from mae_pipe.copies import braces
from mae_pipe.data import cache as caching
from mae_pipe.data import fetch
from mae_pipe.data.address import without_keys
from mae_pipe.data.batch import Batch
from mae_pipe.data.fetch import Patience
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.order import Share
from mae_pipe.data.stream import Stream, open_stream
from mae_pipe.direct import origin_of, shards_of
from mae_pipe.errors import DataError
from mae_pipe.indexing import index
from mae_pipe.sharding import build
from mae_pipe.verifying import verify
from tests.batches import assert_same, first
from tests.servers import KINDS, Plan, of_folder, serving

IMAGES, PER_SHARD = 60, 5
WINDOWED = {"order": "window", "window": 15}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    patience = Patience(piece=1 << 12, stall=0.5, attempts=6, refusals=6, first=0.001, most=0.01)
    monkeypatch.setattr(fetch, "PATIENCE", patience)
    monkeypatch.setattr(caching, "PATIENT", 5.0)
    monkeypatch.setenv("MAE_PIPE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(IMAGES):
        coarse = Image.fromarray(draw.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        path = folder / ("val" if i % 5 == 0 else "train") / f"class{i // 20}" / f"{i}.{'png' if i % 7 == 0 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((int(draw.integers(24, 60)), 40), Image.Resampling.BICUBIC).save(path)
    return folder


@pytest.fixture(scope="module")
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "shards"
    build(images, out, catalog=Catalog(), workers=1, per_shard=PER_SHARD, shuffle=True)
    return out


def opened(place: Path | str, share: Share = Share(micro_batch=4), split: str = "train", **changes: Any) -> Stream:  # noqa: B008
    data = recipe.Data(**{"size": 16, "workers": 2, **WINDOWED, **changes})  # type: ignore[arg-type]
    return open_stream(shards_of(place, Catalog()), split, data, seed=0, share=share, catalog=Catalog())


def test_they_give_the_batches_of_a_folder_and_fetch_each_shard_once_an_epoch(shards: Path) -> None:
    with serving(of_folder(shards)) as (url, plan):
        assert_same(first(opened(url), 36), first(opened(shards), 36))
        tars = [path for path in plan.requests if path.endswith(".tar")]
        assert len(tars) == len(set(tars)) == 10, "three epochs, and the cache holds all of it"


def test_a_cache_that_holds_few_shards_is_enough(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = max(shard.bytes for shard in Manifest.load(shards).splits["train"].shards)
    monkeypatch.setenv("MAE_PIPE_CACHE_SIZE", str(9 * largest))
    with serving(of_folder(shards)) as (url, plan):
        stream = opened(url)
        assert_same(first(stream, 36), first(opened(shards), 36))
        tars = [path for path in plan.requests if path.endswith(".tar")]
        assert len(tars) <= 3 * 10, "a shard is fetched once an epoch at most"
        held = sum(path.stat().st_size for path in caching.home().glob("shards/*"))
        assert held <= 9 * largest


def test_a_cache_that_is_too_small_for_a_window_is_said_at_once(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAE_PIPE_CACHE_SIZE", "40KB")
    with serving(of_folder(shards)) as (url, plan):
        with pytest.raises(DataError, match=r"for a window of 19 images, .* set MAE_PIPE_CACHE_SIZE=1GB, or a smaller"):
            opened(url)
        with pytest.raises(DataError, match=r'for an order of all images at once, .* or data.order="window"'):
            opened(url, order="full")
        assert not any(path.endswith(".tar") for path in plan.requests)


@pytest.mark.parametrize("start", [0, 4, 44, 48, 52, 484])
def test_they_go_on_anywhere(shards: Path, start: int) -> None:
    with serving(of_folder(shards)) as (url, _):
        assert_same(first(opened(url), 3, start), first(opened(shards), 3 + start // 4)[start // 4 :])


def test_ranks_and_lanes_share_the_batches_of_one(shards: Path) -> None:
    lanes: dict[str, Any] = {"lanes": 2, "global_batch": 12}
    alone = first(opened(shards, Share(micro_batch=12), **lanes), 9)
    with serving(of_folder(shards)) as (url, _):
        ranks = [first(opened(url, Share(rank, 2, 3), **lanes), 18) for rank in range(2)]
    for step, batch in enumerate(alone):
        parts = [ranks[rank][2 * step + part] for rank in range(2) for part in range(2)]
        for whole, *several in zip(batch.tensors, *(part.tensors for part in parts), strict=True):
            assert torch.equal(whole, torch.cat(several))


@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_sees_every_image_once(shards: Path, world: int) -> None:
    with serving(of_folder(shards)) as (url, _):
        ranks = [list(opened(url, Share(rank, world, 4), split="val").once()) for rank in range(world)]
    numbers = torch.cat([batch.numbers for batches in ranks for batch in batches])
    assert sorted(numbers[numbers >= 0].tolist()) == list(range(12))


def test_a_small_set_has_the_order_of_local_shards_by_itself(shards: Path) -> None:
    with serving(of_folder(shards)) as (url, _):
        auto: dict[str, Any] = {"order": "auto", "window": 32768}
        assert_same(first(opened(url, **auto), 20), first(opened(shards, **auto), 20))


@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
def test_faults_are_healed_with_the_same_samples(shards: Path, kind: str) -> None:
    expected = first(opened(shards), 24)
    draw, asked = np.random.default_rng(5), Counter[str]()

    def fault(path: str, number: int) -> str:
        asked[path] += 1
        if kind == "mixed":
            return str(draw.choice(KINDS)) if asked[path] < 3 and path != "/manifest.json" else ""
        return kind if asked[path] == 1 and path != "/manifest.json" else ""

    with serving(of_folder(shards), Plan(fault)) as (url, plan):
        assert_same(first(opened(url), 24), expected)
        assert len(plan.faults) >= 3


def test_a_shard_that_stays_out_of_reach_ends_with_its_name_and_hangs_nobody(shards: Path) -> None:
    bad = Manifest.load(shards).splits["train"].shards[3].name
    before = set(threading.enumerate())
    with serving(of_folder(shards), Plan(lambda path, number: "503" if path.endswith(bad) else "")) as (url, _):
        with pytest.raises(DataError, match=rf"{bad} cannot be fetched: the server answers 503 .*\(6 attempts\)"):
            first(opened(url), 36)
        names = [thread.name for thread in set(threading.enumerate()) - before]
    assert not [name for name in names if name.startswith(("decode", "scout"))]


def test_damage_in_the_cache_is_healed(shards: Path) -> None:
    expected = first(opened(shards), 24)
    with serving(of_folder(shards)) as (url, plan):
        first(opened(url), 12)
        for path in caching.home().glob("shards/*.tar"):
            content = bytearray(path.read_bytes())
            for place in range(100, len(content), 97):
                content[place] ^= 4
            path.write_bytes(content)
        plan.requests.clear()
        assert_same(first(opened(url), 24), expected)
        assert len({path for path in plan.requests if path.endswith(".tar")}) >= 8


def test_shards_that_were_built_anew_at_the_same_url_are_not_mixed_with_the_old_ones(
    images: Path, shards: Path, tmp_path: Path
) -> None:
    shutil.copytree(shards, tmp_path / "served")
    with serving(of_folder(tmp_path / "served")) as (url, _):
        first(opened(url), 12)
        shutil.rmtree(tmp_path / "served")
        build(images, tmp_path / "served", catalog=Catalog(), workers=1, per_shard=7)
        assert_same(first(opened(url), 12), first(opened(tmp_path / "served"), 12))


def test_a_server_whose_shards_are_others_than_its_manifests_is_named(
    images: Path, shards: Path, tmp_path: Path
) -> None:
    shutil.copytree(shards, tmp_path / "served")
    one, two = sorted((tmp_path / "served").glob("train-*.tar"))[:2]
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    with serving(of_folder(tmp_path / "served")) as (url, _), pytest.raises(DataError, match=r"train-00000[01]\.tar"):
        first(opened(url), 36)


def test_manifest_index_and_marks_come_once_for_all_processes(shards: Path) -> None:
    with serving(of_folder(shards)) as (url, plan):
        folders = []
        threads = [threading.Thread(target=lambda: folders.append(shards_of(url, Catalog()))) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(folders)) == 1
        assert plan.requests.count("/train.index.safetensors") == plan.requests.count("/train.marks") == 1
        index = folders[0] / "train.index.safetensors"
        assert index.read_bytes() == (shards / "train.index.safetensors").read_bytes()


def changed(shards: Path, to: Path, **values: object) -> Path:
    """A copy with another manifest."""
    shutil.copytree(shards, to)
    text = json.loads((to / "manifest.json").read_text())
    (to / "manifest.json").write_text(json.dumps({**text, **values}))
    return to


@pytest.mark.parametrize("base", ["..", "../tars", "http://127.0.0.1:PORT/tars"])
def test_an_index_may_lie_elsewhere_than_its_shards(shards: Path, tmp_path: Path, base: str) -> None:
    root = tmp_path / "served"
    (root / "tars").mkdir(parents=True)
    place = root if base == ".." else root / "tars"
    with serving(of_folder(root)) as (url, _):
        copy = changed(shards, root / "index", base=base.replace("PORT", url.rpartition(":")[2]))
        for path in copy.glob("*.tar"):
            path.rename(place / path.name)
        assert_same(first(opened(f"{url}/index"), 12), first(opened(shards), 12))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"base": "/etc"}, "cannot lie there"),
        ({"base": "file:///etc"}, "cannot lie there"),
        ({"base": "pipe:cat"}, "no URL"),
        ({"base": "ssh://host/x"}, "no URL runs a command"),
        ({"base": 3}, "cannot lie there"),
        ({"version": 99}, "upgrade mae-pipe"),
        ({"splits": 3}, "is not a manifest"),
    ],
)
def test_a_manifest_that_leads_elsewhere_is_refused(
    shards: Path, tmp_path: Path, values: dict[str, object], words: str
) -> None:
    with (
        serving(of_folder(changed(shards, tmp_path / "served", **values))) as (url, _),
        pytest.raises(DataError, match=words),
    ):
        opened(url)


@pytest.mark.parametrize("name", ["../../x.tar", "/etc/passwd", "a/../../x"])
def test_no_name_in_a_manifest_leads_out_of_its_folder(shards: Path, tmp_path: Path, name: str) -> None:
    splits = json.loads((shards / "manifest.json").read_text())["splits"]
    splits["train"]["index"]["name"] = name
    with (
        serving(of_folder(changed(shards, tmp_path / "served", splits=splits))) as (url, _),
        pytest.raises(DataError, match="outside its folder"),
    ):
        opened(url)


def test_a_place_without_shards_is_a_sentence(tmp_path: Path) -> None:
    with (
        serving(of_folder(tmp_path)) as (url, _),
        pytest.raises(DataError, match=r"/manifest.json cannot be fetched: .*404"),
    ):
        opened(url)
    (tmp_path / "manifest.json").write_text("<html>")
    with serving(of_folder(tmp_path)) as (url, _), pytest.raises(DataError, match="is not a manifest; give the URL"):
        opened(url)


def test_keys_in_a_url_are_used_and_not_told(shards: Path, tmp_path: Path) -> None:
    seen: list[str] = []
    origin = of_folder(shards)

    def asking(method: str, path: str, headers: dict[str, str], sent: bytes) -> tuple[int, dict[str, str], bytes]:
        seen.append(path)
        return origin(method, path, headers, sent) if path.endswith("?sig=secret") else (403, {}, b"")

    with serving(asking) as (url, _):
        stream = opened(f"{url}/?sig=secret")
        assert_same(first(stream, 12), first(opened(shards), 12))
        assert "secret" not in stream.about
        assert origin_of(f"{url}/?sig=secret") == f"{url}/"
        assert all(path.endswith("?sig=secret") for path in seen)
        with pytest.raises(DataError) as caught:
            opened(url)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("kind", ["loop", "403", "reset at once", "stall"])
def test_keys_in_a_url_are_not_told_when_it_fails(shards: Path, kind: str) -> None:
    with serving(of_folder(shards), Plan(lambda path, number: kind)) as (url, _), pytest.raises(DataError) as caught:
        opened(url.replace("://", "://user:secret@") + "/?sig=secret")
    assert "secret" not in str(caught.value)


def test_keys_in_a_url_are_for_this_user_alone_and_not_in_a_runs_command(shards: Path) -> None:
    with serving(of_folder(shards)) as (url, _):
        folder = shards_of(f"{url}/?sig=secret", Catalog())
    assert folder.parent.stat().st_mode & 0o077 == 0
    words = [
        "--shards",
        "https://me:secret@host:80/a/b?sig=secret",
        "--shards=http://host/a?x=secret&y",
        "--set",
        "a=b?",
    ]
    kept = ["--shards", "https://host:80/a/b", "--shards=http://host/a", "--set", "a=b?"]
    assert [without_keys(word) for word in words] == kept


def test_files_may_be_at_a_file_url(shards: Path) -> None:
    assert_same(first(opened(shards.as_uri()), 12), first(opened(shards), 12))


def test_verify_and_order_take_urls(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "served")
    with serving(of_folder(tmp_path / "served")) as (url, _):
        said = CliRunner().invoke(shard_cli.verify, [url])
        assert said.exit_code == 0, said.output
        assert "ok: train: 48 images in 10 webdataset shards" in said.output
        ask = ["--tsv", "--head", "48", "--window", "15", "--epoch", "2"]
        far = CliRunner().invoke(order_cli.order, [url, *ask])
        near = CliRunner().invoke(order_cli.order, [str(shards), "--order", "window", *ask])
        assert far.exit_code == 0, far.output
        assert far.output == near.output
        assert len({line.split("\t")[2] for line in far.output.splitlines()[1:]}) == 48
        bad = tmp_path / "served" / "train-000002.tar"
        bad.write_bytes(bad.read_bytes()[:-700])
        shutil.rmtree(caching.home())
        found = verify(shards_of(url, Catalog()))
        assert len(found) == 1
        assert "train-000002.tar cannot be fetched: it has" in found[0]


def test_a_stream_that_is_closed_leaves_no_thread_and_no_lock(shards: Path) -> None:
    before = set(threading.enumerate())
    with serving(of_folder(shards)) as (url, _):
        first(opened(url), 3)
        names = [thread.name for thread in set(threading.enumerate()) - before]
        for name in names:
            if name.startswith(("decode", "scout", "fetch")):
                assert name == "fetch"  # it ends by itself, as soon as it looks
        stream = opened(url)
        first(stream, 3)
        cache = caching.Cache(size=1)
        assert all(caching._removed(path) for path in cache.folder.glob("*.tar"))


def test_an_early_end_does_not_wait_for_a_server_that_stalls(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "PATIENCE", Patience(stall=50))
    with serving(of_folder(shards)) as (url, plan):
        stream = opened(url)
        early = stream.index.shard[stream.order.at(np.arange(4))]
        soon = {f"/{stream.shelf.split.shards[shard].name}" for shard in early}
        plan.fault = lambda path, number: "" if path in soon else "stall"
        batches: Iterator[Batch] = stream.batches()
        next(batches)
        batches.close()  # type: ignore[attr-defined]
        stream.close()


@pytest.fixture
def tars(images: Path, tmp_path: Path) -> Path:
    """A folder of tars that somebody made, without a manifest."""
    out = tmp_path / "made"
    build(images, out, catalog=Catalog(), workers=1, per_shard=PER_SHARD)
    for path in out.iterdir():
        if path.suffix != ".tar":
            path.unlink()
    return out


@pytest.mark.parametrize("how", ["a pattern", "a folder", "one by one"])
def test_tars_of_others_are_indexed_where_they_lie(tars: Path, tmp_path: Path, how: str) -> None:
    local = tmp_path / "local"
    index([str(tars)], local, catalog=Catalog())
    with serving(of_folder(tmp_path), Plan(lambda path, number: "reset" if number % 4 == 1 else "")) as (url, plan):
        given = {
            "a pattern": [f"{url}/made/train-{{000000..000009}}.tar", f"{url}/made/val-{{000000..000002}}.tar"],
            "a folder": [tars.as_uri()],
            "one by one": [f"{url}/made/{path.name}" for path in tars.iterdir()],
        }[how]
        said: list[str] = []
        manifest = index(given, tmp_path / "index", catalog=Catalog(), say=said.append)
        assert manifest.base == (tars.as_uri() if how == "a folder" else f"{url}/made")
        assert said[0].startswith("copying 13 shards from ")
        asked = len(plan.requests)
        assert_same(first(opened(tmp_path / "index"), 12), first(opened(local), 12))
        assert len(plan.requests) == asked, "the cache has them already"
        shutil.rmtree(caching.home())
        assert_same(first(opened(tmp_path / "index"), 12), first(opened(local), 12))
    assert list(caching.home().glob("copies/*/*")) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["http://127.0.0.1:9/set"], r"name the shards, such as http://127.0.0.1:9/set/train-\{000..127\}.tar"),
        (["http://127.0.0.1:9/a-{9..1}.tar"], "no rising range"),
        (["http://127.0.0.1:9/a-{1..99999999}.tar"], "no rising range"),
        (["http://127.0.0.1:9/a-{x}.tar"], "is no range"),
        (["http://127.0.0.1:9/a.tar", "http://127.0.0.1:8/b.tar"], "several places"),
        (["http://127.0.0.1:9/a.tar?sig=secret"], "has a key in it"),
        (["http://127.0.0.1:9/a.tar", "b.tar"], "given together"),
        (["pipe:cat x.tar"], "no URL"),
        (["http://127.0.0.1:9/a.tar"], "a.tar cannot be fetched"),
    ],
)
def test_urls_that_cannot_be_indexed_are_sentences(tmp_path: Path, given: list[str], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        index(given, tmp_path / "index", catalog=Catalog())
    assert "secret" not in str(caught.value)


def test_patterns_are_spelt_out_as_shells_do_it() -> None:
    assert braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert braces("a-{8..10}.tar") == ["a-8.tar", "a-9.tar", "a-10.tar"]
    assert braces("{a,b}/{0..1}") == ["a/0", "a/1", "b/0", "b/1"]


def test_shards_are_spread_by_shuffle_and_hold_the_same_images(images: Path, tmp_path: Path) -> None:
    for name, shuffle in (("plain", False), ("one", True), ("two", True)):
        build(images, tmp_path / name, catalog=Catalog(), workers=1, per_shard=PER_SHARD, shuffle=shuffle)
    keys = {}
    for name in ("plain", "one", "two"):
        with closing(opened(tmp_path / name)) as stream:
            keys[name] = [stream.index.key(row) for row in range(48)]
            labels = [int(label) for label in stream.index.label]
        assert all(key.startswith(f"class{label}/") for key, label in zip(keys[name], labels, strict=True))
    assert keys["one"] == keys["two"] != keys["plain"]
    assert sorted(keys["one"]) == sorted(keys["plain"])
    classes = [{key[:6] for key in keys["one"][start : start + PER_SHARD]} for start in range(0, 45, PER_SHARD)]
    assert sum(map(len, classes)) > 1.5 * len(classes), "shards in the order of names hold one class, mostly"


def test_what_failed_ahead_of_its_need_is_tried_again_when_it_is_needed(shards: Path) -> None:
    """A server that is away for a while: shards that were to be fetched ahead meanwhile are not lost."""
    with serving(of_folder(shards)) as (url, plan):
        stream = opened(url)
        early = stream.index.shard[stream.order.at(np.arange(16))]
        soon = {f"/{stream.shelf.split.shards[shard].name}" for shard in early}
        plan.fault = lambda path, number: "" if path in soon else "503"
        with closing(stream), closing(stream.batches()) as batches:  # type: ignore[type-var]
            came = [next(batches)]
            while len(plan.faults) < 6 * (10 - len(soon)):  # until all of them have failed for good
                assert threading.active_count()
            plan.fault = lambda path, number: ""
            came += list(itertools.islice(batches, 11))
    assert_same(came, first(opened(shards), 12))
