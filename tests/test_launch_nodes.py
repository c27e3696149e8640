"""One job on two nodes: two launchers that meet by address alone, on loopback and in networks of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.tiny import free_port, losses, prepared

EPOCHS = 4
ADDRESSES = ("10.231.77.1", "10.231.77.2")
TORCHRUN = ("-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1")


@pytest.fixture(scope="module")
def given(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return prepared(image_folder, tmp_path_factory.mktemp("nodes"), epochs=EPOCHS)


def pretrain(given: tuple[Path, Path], run: Path) -> list[str]:
    recipe, shards = given
    return ["-m", "mae_pipe", "pretrain", str(recipe), "--shards", str(shards), "--out", str(run)]


@pytest.fixture(scope="module")
def alone(given: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses of one process without a launcher."""
    run = tmp_path_factory.mktemp("alone") / "run"
    subprocess.run([sys.executable, *pretrain(given, run)], check=True, timeout=120, capture_output=True)
    return losses(run)


@pytest.fixture(scope="module")
def namespaces() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them, whose ends are called eth0."""
    names = (f"mae-{os.getpid()}-0", f"mae-{os.getpid()}-1")
    lines = [f"netns add {name}" for name in names]
    lines.append(f"link add eth0 netns {names[0]} type veth peer name eth0 netns {names[1]}")
    for name, address in zip(names, ADDRESSES, strict=True):
        lines += [
            f"-n {name} addr add {address}/24 dev eth0",
            f"-n {name} link set eth0 up",
            f"-n {name} link set lo up",
        ]
    with ExitStack() as after:
        for line in lines:
            try:
                subprocess.run(["ip", *line.split()], check=True, capture_output=True, text=True)
            except FileNotFoundError:
                pytest.skip("network namespaces need `ip`, of the package iproute2")
            except subprocess.CalledProcessError as error:
                pytest.skip(f"network namespaces are not permitted here: ip {line}: {error.stderr.strip()}")
            if line.startswith("netns add"):
                after.callback(subprocess.run, ["ip", "netns", "delete", line.split()[-1]], check=False)
        yield names


def start(words: list[str], *, inside: str = "", **environment: str) -> subprocess.Popen[str]:
    """A Python on a node, which is a network namespace or this machine."""
    place = ["ip", "netns", "exec", inside] if inside else []
    return subprocess.Popen(
        [*place, sys.executable, *words], env=os.environ | environment, stderr=subprocess.PIPE, text=True
    )


def end(nodes: list[subprocess.Popen[str]]) -> None:
    """All end well."""
    try:
        said = [node.communicate(timeout=150)[1] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(text[-2000:] for text in said)


def assert_one_run_of_two(run: Path, alone: dict[int, float]) -> None:
    assert json.loads((run / "run.json").read_text())["world"] == 2
    assert len(alone) == 3 * EPOCHS
    assert losses(run) == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("ours", marks=pytest.mark.slow)])
def test_two_launchers_on_loopback_are_one_job(
    given: tuple[Path, Path], alone: dict[int, float], tmp_path: Path, launcher: str
) -> None:
    job, port = pretrain(given, tmp_path / "run"), str(free_port())
    if launcher == "ours":
        nodes = [start([*job, "--nnodes", "2", "--rendezvous", f"127.0.0.1:{port}"]) for _ in range(2)]
    else:
        where = ["--master-addr", "127.0.0.1", "--master-port", port]
        nodes = [start([*TORCHRUN, "--node-rank", str(node), *where, *job]) for node in (0, 1)]
    end(nodes)
    assert_one_run_of_two(tmp_path / "run", alone)


def test_two_launchers_in_networks_of_their_own_are_one_job(
    given: tuple[Path, Path], alone: dict[int, float], namespaces: tuple[str, str], tmp_path: Path
) -> None:
    where = ["--master-addr", ADDRESSES[0], "--master-port", "29500"]
    job = pretrain(given, tmp_path / "run")
    nodes = [
        start([*TORCHRUN, "--node-rank", str(node), *where, *job], inside=name) for node, name in enumerate(namespaces)
    ]
    end(nodes)
    assert_one_run_of_two(tmp_path / "run", alone)


def test_a_node_that_offers_the_others_its_loopback_is_told_what_is_wrong(
    given: tuple[Path, Path], namespaces: tuple[str, str], tmp_path: Path
) -> None:
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": "lo"}
    job = pretrain(given, tmp_path / "run")
    nodes = [start(job, inside=name, RANK=str(rank), **meeting) for rank, name in enumerate(namespaces)]
    deadline = time.monotonic() + 100
    while nodes[0].poll() is nodes[1].poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)  # either may be the one that calls, and the other waits to be called
    ended = [(rank, node) for rank, node in enumerate(nodes) if node.poll() is not None]
    for node in nodes:
        node.kill()
    said = [node.communicate()[1] for node in nodes]
    assert ended
    for rank, node in ended:
        assert node.returncode == 6, said[rank]
        last = said[rank].splitlines()[-1]
        assert f"rank {rank} of 2 could not reach the others" in last
        assert "GLOO_SOCKET_IFNAME" in last
