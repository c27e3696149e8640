"""The doctor names what would go wrong, and how to mend it."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import shutil
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from mae_pipe import doctor, machine
from mae_pipe.cli import doctor as cli
from mae_pipe.machine import GIB, Finding


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> list[Finding]:
    return doctor.examine(tmp_path_factory.mktemp("here"))


def test_a_machine_that_runs_the_tests_is_not_broken(findings: list[Finding]) -> None:
    assert [f for f in findings if f.state == "broken" and not f.name.startswith(("memory", "disk"))] == []
    names = [f.name for f in findings]
    wanted = {"version", "packages", "torch", "accelerator", "deepspeed", "ffcv", "plugins", "compilers", "memory"}
    assert wanted | {"cores", "disk", "disk for temporary files", "open files"} <= set(names)


def test_whatever_is_not_ok_says_what_would_go_wrong(findings: list[Finding]) -> None:
    assert all((f.state == "ok") == (f.trouble == "") for f in findings)


def test_ffcv_is_ok_exactly_where_it_is_installed(findings: list[Finding]) -> None:
    state = next(f.state for f in findings if f.name == "ffcv")
    assert state == ("ok" if importlib.util.find_spec("ffcv") else "warning")


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warning", 0), ("broken", 1)])
def test_the_exit_code_is_1_only_where_something_is_broken(
    monkeypatch: pytest.MonkeyPatch, state: machine.State, code: int
) -> None:
    finding = Finding("disk", state, "[b]1 GiB[/b]", "no room", "rm -r old")
    monkeypatch.setattr(cli, "examine", lambda folder: [finding])
    shown = CliRunner().invoke(cli.doctor, [])
    as_json = CliRunner().invoke(cli.doctor, ["--json"])
    assert (shown.exit_code, as_json.exit_code) == (code, code)
    assert "[b]1 GiB[/b]" in shown.output
    assert ("no room" in shown.output and "rm -r old" in shown.output) == (state != "ok")
    found = json.loads(as_json.stdout)
    assert found == {"broken": code, "findings": [vars(finding)]}


def test_a_package_that_crashes_on_import_is_a_finding() -> None:
    crash = doctor._end(doctor._begin("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"))
    raises = doctor._end(doctor._begin("print('noise'); raise OSError('libopencv_core.so: cannot open')"))
    assert crash == {"failed": "killed by signal 11"}
    assert raises == {"failed": "OSError: libopencv_core.so: cannot open"}


def test_a_package_that_never_answers_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "IMPORT_SECONDS", 0.2)
    assert doctor._end(doctor._begin("import threading; threading.Event().wait(60)")) == {
        "failed": "no answer in 0.2 s"
    }


def test_a_broken_ffcv_is_a_warning_that_names_the_command() -> None:
    finding = doctor._ffcv({"failed": "ModuleNotFoundError: No module named 'ffcv'"})
    assert finding.state == "warning"
    assert "WebDataset" in finding.trouble
    assert "libopencv-dev" in finding.mend


def test_a_torchvision_of_another_build_is_named() -> None:
    reason = "RuntimeError: operator torchvision::nms does not exist"
    probe = {"version": "2.13.0", "vision": reason, "gpus": [], "said": [], "threads": 2}
    finding = next(iter(doctor._torch(probe)))
    assert finding.state == "broken"
    assert reason in finding.trouble
    assert "torch torchvision" in finding.mend


def test_an_unusable_driver_is_told_in_torchs_words() -> None:
    probe = {"version": "2.14.1", "vision": "", "gpus": [], "said": ["The NVIDIA driver is too old"], "threads": 2}
    assert [f.trouble for f in doctor._torch(probe) if f.name == "accelerator"] == ["The NVIDIA driver is too old"]


def test_a_package_out_of_range_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.1" if name == "timm" else real(name))
    finding = doctor._packages()
    assert finding.state == "broken"
    assert finding.found.startswith("timm 0.0.1 is not")


@pytest.mark.parametrize(
    ("finding", "state"),
    [
        (machine._memory(GIB // 2), "broken"),
        (machine._memory(2 * GIB), "warning"),
        (machine._memory(8 * GIB), "ok"),
        (machine._cores(4, "1"), "warning"),
        (machine._cores(4, None), "ok"),
        (machine._shared_memory(GIB // 16), "warning"),
        (machine._shared_memory(2 * GIB), "ok"),
        (machine._open_files(1024), "warning"),
        (machine._open_files(65536), "ok"),
        (machine._open_files(resource.RLIM_INFINITY), "ok"),
        (machine._disk("disk", Path("/nowhere")), "broken"),
    ],
)
def test_each_limit_is_judged(finding: Finding, state: str) -> None:
    assert finding.state == state


@pytest.mark.parametrize(("free", "state"), [(GIB // 4, "broken"), (3 * GIB, "warning"), (50 * GIB, "ok")])
def test_little_disk_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, state: str) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    assert machine._disk("disk", tmp_path).state == state


def test_a_containers_memory_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/meminfo": ["MemTotal: 99 kB", "MemAvailable: 9000000 kB"],
        "/sys/fs/cgroup/memory.max": ["2000"],
        "/sys/fs/cgroup/memory.current": ["500"],
    }
    monkeypatch.setattr(machine, "_lines", lambda path: files[path])
    assert machine.available_memory() == 1500
    files["/sys/fs/cgroup/memory.max"] = ["max"]
    assert machine.available_memory() == 9000000 * 1024


def test_variables_that_a_launcher_left_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}  # a run in this process sets it
    monkeypatch.setattr(os, "environ", {**kept, "RANK": "0", "WORLD_SIZE": "2"})
    found = [f for f in machine.findings(tmp_path) if f.name == "launcher"]
    assert [f.mend for f in found] == ["unset RANK WORLD_SIZE"]
