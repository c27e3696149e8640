"""Bytes from elsewhere come whole and right, or not at all and with a sentence."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mae_pipe.data import fetch as fetching
from mae_pipe.data.address import Address, is_url
from mae_pipe.data.fetch import Abandoned, Fetched, Patience, Unreachable, fetch
from mae_pipe.errors import DataError
from tests.servers import KINDS, Plan, of_folder, serving

QUICK = Patience(piece=1 << 14, stall=0.4, attempts=5, refusals=3, first=0.005, most=0.01)
CONTENT = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "served" / "sub dir").mkdir(parents=True)
    (tmp_path / "served" / "file.tar").write_bytes(CONTENT)
    (tmp_path / "served" / "sub dir" / "other.tar").write_bytes(b"other")
    return tmp_path / "served"


def fetched(address: Address, **given: object) -> bytes:
    out = bytearray()
    settings: dict[str, object] = {"limit": 1 << 20, "stop": threading.Event(), "patience": QUICK, **given}
    came = fetch(address, out.extend, **settings)  # type: ignore[arg-type]
    assert came == Fetched(len(out), hashlib.sha256(out).hexdigest())
    return bytes(out)


def test_a_file_comes_as_it_is_with_its_size_known_or_not(folder: Path) -> None:
    with serving(of_folder(folder)) as (url, _):
        assert fetched(Address.of(url) / "file.tar") == CONTENT
        assert fetched(Address.of(url) / "file.tar", size=len(CONTENT)) == CONTENT
        assert fetched(Address.of(url + "/sub dir") / "../file.tar") == CONTENT
    assert fetched(Address.of(folder.as_uri()) / "file.tar", size=len(CONTENT)) == CONTENT
    assert fetched(Address.of(folder.as_uri()) / "file.tar") == CONTENT


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("flip", "swap", "long", "empty")])
def test_what_goes_wrong_once_in_a_while_is_healed(folder: Path, kind: str) -> None:
    plan = Plan(lambda path, number: kind if number in (0, 2) else "reset" if number == 1 else "")
    with serving(of_folder(folder), plan) as (url, plan):
        assert fetched(Address.of(url) / "file.tar", size=len(CONTENT)) == CONTENT
    assert kind in plan.faults


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("404", "404"),
        ("403", "403"),
        ("503", "503"),
        ("stall", "nothing came for 0.4 s"),
        ("stall at once", "nothing came for 0.4 s"),
        ("trickle", "nothing came for 0.4 s"),
        ("reset at once", "attempts"),
        ("loop", "attempts"),
        ("empty", "bytes"),
        ("long", "bytes"),
    ],
)
def test_what_stays_wrong_ends_in_a_sentence_that_names_the_file(folder: Path, kind: str, words: str) -> None:
    with serving(of_folder(folder), Plan(lambda path, number: kind)) as (url, plan):
        with pytest.raises(Unreachable) as caught:
            fetched(Address.of(url) / "file.tar", size=len(CONTENT))
        assert len(plan.requests) <= 20 * QUICK.attempts  # a loop is followed ten times
    said = str(caught.value)
    assert "/file.tar cannot be fetched: " in said
    assert words in said
    assert said.endswith("then give the same command again")
    assert "\n" not in said


def test_a_broken_transfer_goes_on_where_it_was(folder: Path) -> None:
    with serving(of_folder(folder), Plan(lambda path, number: "reset" if number < 3 else "")) as (url, plan):
        came = bytearray()
        fetch(Address.of(url) / "file.tar", came.extend, size=len(CONTENT), limit=1 << 20, stop=threading.Event(),
              patience=QUICK)  # fmt: skip
    assert bytes(came) == CONTENT
    assert len(plan.requests) == 4


def test_a_file_that_is_too_large_is_not_taken(folder: Path) -> None:
    with serving(of_folder(folder)) as (url, _), pytest.raises(Unreachable, match="more than 5,000 bytes came"):
        fetched(Address.of(url) / "file.tar", limit=5000)
    with pytest.raises(Unreachable, match="cannot be fetched"):
        fetched(Address.of(folder.as_uri()) / "file.tar", limit=5000)


def test_whoever_stops_waits_for_nothing(folder: Path) -> None:
    stop = threading.Event()
    with serving(of_folder(folder), Plan(lambda path, number: "stall at once")) as (url, _):
        patient = Patience(stall=50)
        threading.Timer(0.1, stop.set).start()
        began = time.monotonic()
        with pytest.raises(Abandoned):
            fetched(Address.of(url) / "file.tar", stop=stop, patience=patient)
        assert time.monotonic() - began < 10


def test_what_is_not_there_is_said_for_files_too(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="there is no such file"):
        fetched(Address.of(tmp_path.as_uri()) / "file.tar")


def test_nobody_listens_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:9/x cannot be fetched: .*5 attempts"):
        fetched(Address.of("http://127.0.0.1:9/x"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pipe:cat /etc/passwd", "no URL"),
        ("pipe://cat", "no URL runs a command"),
        ("simplecache::s3://bucket/x", "no URL"),
        ("s3://bucket/x::file:///y", "no URL"),
        ("ssh://host/x", "no URL runs a command"),
        ("reference://x", "no URL runs a command"),
        ("http:///x", "no host"),
        ("https://host/\n", "control characters"),
        ("s33://bucket", "did you mean 's3'"),
    ],
)
def test_only_known_kinds_of_urls_are_read(text: str, words: str) -> None:
    assert is_url(text)
    with pytest.raises(DataError, match=words):
        Address.of(text)


@pytest.mark.parametrize(
    ("base", "name", "whole"),
    [
        ("s3://bucket/a/", "t-0.tar", "s3://bucket/a/t-0.tar"),
        ("s3://bucket", "t 0.tar", "s3://bucket/t 0.tar"),
        ("s3://bucket/a/b", "../t.tar", "s3://bucket/a/t.tar"),
        ("https://host/a/", "t 0#.tar", "https://host/a/t%200%23.tar"),
        ("https://host", "t.tar", "https://host/t.tar"),
        ("HTTPS://host/a?sig=1", "t.tar", "https://host/a/t.tar?sig=1"),
        ("file:///a/b", "t.tar", "file:///a/b/t.tar"),
        ("hf://datasets/user/name", "t.tar", "hf://datasets/user/name/t.tar"),
        ("abfs://box@account.dfs.core.windows.net/a", "t.tar", "abfs://box@account.dfs.core.windows.net/a/t.tar"),
    ],
)
def test_names_are_joined_below_a_url(base: str, name: str, whole: str) -> None:
    assert (Address.of(base) / name).url == whole


def test_no_name_leads_out_of_a_bucket() -> None:
    with pytest.raises(DataError, match="leads out"):
        Address.of("s3://bucket/a") / "../../b"
    assert (Address.of("https://host/a") / "../../../b").url == "https://host/b"


def test_neither_passwords_nor_keys_are_printed() -> None:
    shown = str(Address.of("https://user:secret@host:8080/a/b?sig=secret") / "t.tar")
    assert shown == "https://host:8080/a/b/t.tar"


def test_a_missing_library_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(DataError, match=r"pip install 'mae-pipe\[gs\]'"):
        fetching.filesystem(Address.of("gs://bucket/x"))
