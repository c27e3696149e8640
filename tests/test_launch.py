"""A process knows its place however it was launched."""

from __future__ import annotations

import pytest

from mae_pipe.cli.launching import for_a_process
from mae_pipe.errors import RecipeError, RunError
from mae_pipe.launch import Place, first_host, place
from mae_pipe.network import interface_towards, is_own
from mae_pipe.spawning import Job


def test_alone_needs_no_environment() -> None:
    assert place({}) == Place(0, 1, 0)


def test_torchrun_and_the_deepspeed_launcher_are_read() -> None:
    assert place({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Place(5, 8, 1)


def test_srun_is_read() -> None:
    env = {"SLURM_PROCID": "9", "SLURM_NTASKS": "16", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0"}
    assert place(env) == Place(9, 16, 1)


def test_a_plain_process_inside_an_allocation_is_alone() -> None:
    assert place({"SLURM_PROCID": "0", "SLURM_NTASKS": "16"}) == Place(0, 1, 0)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu003", "gpu003"), ("gpu[003-010,14],x", "gpu003"), ("a1,a2", "a1"), ("n-1-[7,9]", "n-1-7")],
)
def test_the_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_an_empty_node_list_is_refused_in_a_sentence() -> None:
    with pytest.raises(RunError, match="MASTER_ADDR"):
        first_host("")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "no-such-host.invalid", ""])
def test_no_interface_is_chosen_where_none_leads_to_another_machine(host: str) -> None:
    assert interface_towards(host) is None


@pytest.mark.parametrize(
    ("host", "own"), [("127.0.0.1", True), ("localhost", True), ("192.0.2.1", False), ("no-such-host.invalid", False)]
)
def test_a_machine_knows_its_addresses(host: str, own: bool) -> None:
    assert is_own(host) == own


def test_the_processes_get_the_same_command_without_the_launchers_options() -> None:
    arguments = ["pretrain", "digits", "--nproc", "2", "--set", "a=1", "--nproc=3", "--max-restarts", "1"]
    assert for_a_process(arguments) == ["pretrain", "digits", "--set", "a=1"]


def test_several_nodes_want_a_place_to_meet() -> None:
    with pytest.raises(RecipeError, match="--rendezvous HOST:PORT"):
        Job(2, nodes=2)
    with pytest.raises(RecipeError, match="is not HOST:PORT"):
        Job(2, nodes=2, rendezvous="gpu01")
