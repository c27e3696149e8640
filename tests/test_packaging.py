"""What is installed is what is meant: the wheel, the requirements, the set-up script."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
SHIPPED = {"mae_pipe": "mae_pipe", "plugins": "mae_pipe_plugins", "shards": "mae_pipe_shards"}
CALLED = {"pillow": "PIL"}  # requirement -> the name it is imported by
NEEDED_BY_OTHERS = {"tensorboard": "torch.utils.tensorboard", "torchvision": "timm"}
FOR_THE_USER = {"webdataset"}  # reads our tars in a user's own scripts, and in our tests


def requirements(section: str = "") -> dict[str, Requirement]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    text = config["options.extras_require"][section] if section else config["options"]["install_requires"]
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {needed.name: needed for needed in map(Requirement, lines)}


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def copy_of_the_sources(folder: Path) -> Path:
    """The files that a checkout has, without what was built in it."""
    skip = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info", ".*", "build", "dist", "runs", "demo-out")
    return Path(shutil.copytree(ROOT, folder / "sources", ignore=skip))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist, and a wheel that was built from it."""
    folder = tmp_path_factory.mktemp("built")
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(copy_of_the_sources(folder)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_wheel_carries_all_packages_under_safe_names_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    data = [p for p in (ROOT / "mae_pipe").rglob("*") if p.suffix in (".toml", ".j2")]
    assert len(data) > 3
    wanted = {str(path.relative_to(ROOT)) for path in data}
    for folder, package in SHIPPED.items():
        wanted |= {f"{package}/{p.relative_to(ROOT / folder)}" for p in (ROOT / folder).rglob("*.py")}
        wanted.add(f"{package}/py.typed")
    assert wanted <= packed
    assert {name.partition("/")[0] for name in packed} == set(SHIPPED.values())


def test_the_sdist_can_be_tested_and_says_its_licence(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        packed = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "tools/setup.sh", "requirements/tested.txt"} <= packed
    assert {"tests/conftest.py", "tests/test_packaging.py", "docs/design.md"} <= packed


def test_an_installed_wheel_finds_its_plugins_from_anywhere(built: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*install, str(next(built.glob("*.whl")))], check=True)
    code = (
        "import sys, mae_pipe, mae_pipe_plugins, mae_pipe_shards\n"
        "for package in (mae_pipe, mae_pipe_plugins, mae_pipe_shards): print(package.__file__)\n"
        "sys.argv = ['mae-pipe', 'plugins']\n"
        "from mae_pipe.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=True,
    )
    files = done.stdout.splitlines()[:3]
    assert all(file.startswith(str(target)) for file in files)
    for kind, name in (("mask", "random"), ("target", "pixel"), ("head", "linear"), ("shards", "webdataset")):
        assert re.search(rf"\b{kind} +{name} +mae-pipe ", done.stdout)
    assert "not usable" not in done.stdout


def test_everything_imported_is_required_and_everything_required_is_used() -> None:
    imported = set()
    for folder in SHIPPED:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    imported |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    imported.add(node.module)
    names = {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names) - set(SHIPPED.values())
    required = {CALLED.get(name, name) for name in requirements()}
    optional = {
        CALLED.get(name, name)
        for extra in ("ffcv", "demo", "tiff", "imagenet", "parquet", "onnx")
        for name in requirements(extra)
    }
    assert names <= required | optional
    indirect = {
        name
        for name, user in NEEDED_BY_OTHERS.items()
        if any(used == user or used.startswith(f"{user}.") for used in imported)
    }
    assert required - names - indirect == FOR_THE_USER


def test_ffcv_is_an_extra_since_it_needs_system_headers_to_build() -> None:
    assert "ffcv" not in requirements()
    assert str(requirements("ffcv")["ffcv"].specifier) == "==1.0.2"


@pytest.mark.parametrize("extra", ["", "ffcv", "demo", "tiff", "imagenet", "parquet", "onnx", "dev"])
def test_every_requirement_has_a_tested_version_in_its_range(extra: str) -> None:
    tested = pins("tested.txt")
    for name, needed in requirements(extra).items():
        assert needed.specifier.contains(tested[name]), f"{name}: {tested[name]} is not {needed.specifier}"


def test_every_lower_bound_is_one_that_is_tested() -> None:
    oldest = pins("oldest.txt")
    for name, needed in {**requirements(), **requirements("demo")}.items():
        bounds = {s.operator: s.version for s in needed.specifier}
        assert bounds.get(">=", bounds.get("==")) == oldest[name], name


def test_every_target_of_the_makefile_is_in_its_help() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE)) - {"help", "ready"}
    assert targets == set(re.findall(r"'make ([a-z-]+) ", text))
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony
    assert set(phony[1].split()) == targets | {"help", "ready"}


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A checkout as far as the set-up script looks at it, with no environment."""
    for name in ("setup.cfg", "pyproject.toml", "requirements", "tools"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    return tmp_path


def setup(checkout: Path, script: str = "main", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run functions of tools/setup.sh; what installs is replaced by the caller's script."""
    command = ["bash", "-c", f"source tools/setup.sh; {script}"]
    plain = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    return subprocess.run(
        command, cwd=checkout, env={**plain, **environment}, capture_output=True, text=True, check=False
    )


def test_setup_without_a_fitting_python_says_what_to_do(bare: Path) -> None:
    done = setup(bare, PYTHON="/nowhere/python3.11")
    assert done.returncode != 0
    assert "found no Python 3.11 or 3.12" in done.stderr
    assert "make setup PYTHON=" in done.stderr
    assert not (bare / ".venv").exists()


WITHOUT_INSTALLING = """
choose_python() { echo fake_python; }
fake_python() { mkdir -p .venv/bin; ln -sf "$REAL" .venv/bin/python; echo "a Python"; }
quietly() { :; }
"""


def test_setup_without_ffcv_goes_on_and_the_second_time_does_nothing(bare: Path) -> None:
    script = WITHOUT_INSTALLING + "bring_up_ffcv() { return 1; }; main"
    first = setup(bare, script, REAL=sys.executable)
    assert first.returncode == 0, first.stderr
    assert "going on without FFCV" in first.stdout
    assert setup(bare, script, REAL=sys.executable).stdout == ""
    (bare / "requirements" / "tested.txt").write_text("click==8.1.8\n")
    assert "ready" in setup(bare, script, REAL=sys.executable).stdout


def test_setup_that_fails_is_not_taken_for_done(bare: Path) -> None:
    script = WITHOUT_INSTALLING + "quietly() { echo 'no such version' >&2; return 1; }; main"
    failed = setup(bare, f"set -e; {script}", REAL=sys.executable)
    assert failed.returncode == 1
    assert "no such version" in failed.stderr
    assert not (bare / ".venv" / ".stamp").exists()


def test_a_user_who_is_not_root_is_told_which_headers_ffcv_needs(bare: Path) -> None:
    done = setup(bare, "id() { echo 1000; }; has_headers() { false; }; get_headers")
    assert done.returncode == 1
    assert "sudo apt-get install libopencv-dev libturbojpeg0-dev" in done.stdout


def test_headers_that_are_there_need_no_root(bare: Path) -> None:
    done = setup(bare, "id() { echo 1000; }; has_headers() { true; }; get_headers")
    assert (done.returncode, done.stdout) == (0, "")
