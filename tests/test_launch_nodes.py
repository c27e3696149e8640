"""One job on two nodes: two launchers that meet by address alone, on loopback and in networks of their own."""

from __future__ import annotations

import json
import os
import signal
import socket
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


def end(nodes: list[subprocess.Popen[str]]) -> list[str]:
    """All end well; what they said."""
    try:
        said = [node.communicate(timeout=150)[1] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(text[-2000:] for text in said)
    return said


def assert_one_run_of_two(run: Path, alone: dict[int, float]) -> None:
    assert json.loads((run / "run.json").read_text())["world"] == 2
    assert len(alone) == 3 * EPOCHS
    assert losses(run) == pytest.approx(alone, rel=1e-5)


def launchers(job: list[str], launcher: str, host: str, places: tuple[str, str]) -> list[subprocess.Popen[str]]:
    """Two of torchrun's or of ours, which meet at ``host``."""
    port = str(free_port())
    if launcher == "ours":
        return [start([*job, "--nnodes", "2", "--rendezvous", f"{host}:{port}"], inside=place) for place in places]
    where = ["--master-addr", host, "--master-port", port]
    return [
        start([*TORCHRUN, "--node-rank", str(node), *where, *job], inside=place) for node, place in enumerate(places)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "ours"])
def test_two_launchers_on_loopback_are_one_job(
    given: tuple[Path, Path], alone: dict[int, float], tmp_path: Path, launcher: str
) -> None:
    end(launchers(pretrain(given, tmp_path / "run"), launcher, "127.0.0.1", ("", "")))
    assert_one_run_of_two(tmp_path / "run", alone)


@pytest.mark.parametrize("launcher", [pytest.param("torchrun", marks=pytest.mark.slow), "ours"])
def test_two_launchers_in_networks_of_their_own_are_one_job(
    given: tuple[Path, Path], alone: dict[int, float], namespaces: tuple[str, str], tmp_path: Path, launcher: str
) -> None:
    end(launchers(pretrain(given, tmp_path / "run"), launcher, ADDRESSES[0], namespaces))
    assert_one_run_of_two(tmp_path / "run", alone)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_after_a_rank_was_killed_on_one_node_the_launchers_of_both_start_again(
    image_folder: Path, namespaces: tuple[str, str], tmp_path: Path, killed: int
) -> None:
    epochs, run = 30, tmp_path / "run"
    job = [*pretrain(prepared(image_folder, tmp_path, epochs=epochs), run), "--max-restarts", "1"]
    nodes = launchers([*job, "--set", "saving.every_epochs=2"], "ours", ADDRESSES[0], namespaces)
    deadline = time.monotonic() + 100
    while len(losses(run)) < 9 and time.monotonic() < deadline:
        time.sleep(0.05)
    (task,) = Path(f"/proc/{nodes[killed].pid}/task").glob(f"{nodes[killed].pid}")
    (rank,) = map(int, (task / "children").read_text().split())
    os.kill(rank, signal.SIGKILL)
    said = end(nodes)
    assert "was killed by SIGKILL" in said[killed]
    assert all(text.count("restart 1 of 1") == 1 and "Traceback" not in text for text in said), said
    assert list(losses(run)) == list(range(1, 3 * epochs + 1))


NO_WAITING = "from mae_pipe import cli, meeting; meeting.SECONDS = 2; cli.main()"


@pytest.mark.parametrize("wrong", ["host", "service", "node"])
def test_launchers_that_do_not_meet_say_so(given: tuple[Path, Path], tmp_path: Path, wrong: str) -> None:
    port, where = free_port(), "no-such-host.invalid" if wrong == "host" else "127.0.0.1"
    with socket.socket() as service:  # not a launcher
        if wrong == "service":
            service.bind(("", port))
            service.listen()
        job = [*pretrain(given, tmp_path / "run")[2:], "--nnodes", "2", "--rendezvous", f"{where}:{port}"]
        begun = time.monotonic()
        node = start(["-c", NO_WAITING, *job])
        said = node.communicate(timeout=60)[1]
    assert node.returncode == 6, said
    assert f"the launchers of 2 nodes did not meet at {where}:{port} within 2 s" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert time.monotonic() - begun < 30
    assert not (tmp_path / "run").exists()


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
