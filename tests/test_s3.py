"""Training from an S3 server that fails: the same weights as from the disk."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from safetensors.torch import load_file
from torch import Tensor

from mae_pipe.catalog import Catalog
from mae_pipe.data import fetch
from mae_pipe.data.address import Address
from mae_pipe.data.fetch import Patience
from mae_pipe.direct import shards_of
from mae_pipe.errors import DataError
from mae_pipe.sharding import build
from tests.servers import KINDS, Plan, of_server, serving

ROOT = Path(__file__).parents[1]
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
SETTINGS = [
    "data.size=32", "data.global_batch=8", "data.micro_batch=4", "data.workers=2", 'data.order="window"',
    "data.window=6", "encoder.patch=8", "encoder.width=32", "encoder.depth=2", "encoder.heads=2",
    "decoder.width=16", "decoder.depth=1", "decoder.heads=2", "schedule.epochs=8", "schedule.warmup_epochs=1",
    "saving.every_epochs=2", "logging.every_steps=1", 'engine.precision="fp32"',
]  # fmt: skip


@pytest.fixture(scope="module")
def shards(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "shards"
    build(image_folder, out, catalog=Catalog(), workers=1, per_shard=3, shuffle=True)
    return out


@pytest.fixture(scope="module")
def bucket(shards: Path) -> Iterator[Plan]:
    """The plan of a server of faults before an S3 server, which holds the shards at s3://bucket/shards."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    before = dict(os.environ)
    with serving(of_server(*server.get_host_and_port())) as (url, plan):
        os.environ.update(KEYS, AWS_ENDPOINT_URL=url)
        system = fetch.filesystem(Address.of("s3://bucket"))
        system.mkdir("bucket")
        for path in shards.iterdir():
            system.pipe_file(f"bucket/shards/{path.name}", path.read_bytes())
        yield plan
    os.environ.clear()
    os.environ.update(before)
    server.stop()


def train(shards: str, run: Path, cache: Path, *, nproc: int = 1) -> subprocess.CompletedProcess[str]:
    """``mae-pipe pretrain`` in a process of its own, with little patience."""
    code = (
        "from mae_pipe.data import fetch; from mae_pipe.cli import main; "
        "fetch.PATIENCE = fetch.Patience(piece=1 << 12, stall=1, attempts=12, refusals=12, first=0.01, most=0.05); "
        "main()"
    )
    changes = [word for setting in SETTINGS for word in ("--set", setting)]
    command = [sys.executable, "-c", code, "pretrain", "digits", "--shards", shards, "--out", str(run), *changes]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MAE_PIPE_CACHE": str(cache)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "model.safetensors")


def test_a_run_from_s3_under_random_faults_ends_with_the_weights_of_one_from_the_disk(
    shards: Path, bucket: Plan, tmp_path: Path
) -> None:
    near = train(str(shards), tmp_path / "near", tmp_path / "unused")
    assert near.returncode == 0, near.stderr[-2000:]
    draw = np.random.default_rng(3)
    bucket.requests.clear()
    bucket.faults.clear()
    wrong: set[str] = set()

    def fault(path: str, number: int) -> str:
        """Three answers in ten have a fault; wrong bytes come once a file, as three times are a wrong file."""
        kind = str(draw.choice(KINDS)) if draw.random() < 0.3 and number > 3 else ""
        if kind in ("flip", "swap") and path in wrong:
            return ""
        wrong.update({path} if kind in ("flip", "swap") else ())
        return kind

    bucket.fault = fault
    far = train("s3://bucket/shards", tmp_path / "far", tmp_path / "cache")
    bucket.fault = lambda path, number: ""
    assert far.returncode == 0, far.stderr[-2000:]
    assert "shuffled in windows of about 6 images, 2 shards, from s3://bucket/shards" in far.stderr
    assert len(bucket.faults) >= 5
    assert (tmp_path / "near" / "model.safetensors").read_bytes() == (
        tmp_path / "far" / "model.safetensors"
    ).read_bytes()

    # It goes on from where it was, from the disk: the newest checkpoints are taken away.
    for name in ("step-0000021", "step-0000024"):
        shutil.rmtree(tmp_path / "far" / "checkpoints" / name, ignore_errors=True)
    again = train(str(shards), tmp_path / "far", tmp_path / "unused")
    assert again.returncode == 0, again.stderr[-2000:]
    assert (tmp_path / "near" / "model.safetensors").read_bytes() == (
        tmp_path / "far" / "model.safetensors"
    ).read_bytes()


def test_what_is_not_in_a_bucket_is_said(bucket: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAE_PIPE_CACHE", str(tmp_path))
    monkeypatch.setattr(fetch, "PATIENCE", Patience(stall=5, refusals=2, first=0.001, most=0.001))
    for place in ("s3://bucket/elsewhere", "s3://no-such-bucket/shards"):
        with pytest.raises(DataError, match=rf"{place}/manifest.json cannot be fetched: there is no such file"):
            shards_of(place, Catalog())


def test_a_server_that_is_gone_ends_a_run_with_a_sentence(bucket: Plan, tmp_path: Path) -> None:
    bucket.fault = lambda path, number: "503" if path.endswith(".tar") else ""
    done = train("s3://bucket/shards", tmp_path / "run", tmp_path / "cache")
    bucket.fault = lambda path, number: ""
    assert done.returncode == 4
    assert "Traceback" not in done.stderr
    assert ".tar cannot be fetched: " in done.stderr
