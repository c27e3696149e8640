"""`plugins new` writes packages that install, and pass their own tests and our linters, as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mae_pipe import scaffold, testing
from mae_pipe.catalog import Catalog
from mae_pipe.cli.plugins import plugins
from mae_pipe.errors import PluginError

ROOT = Path(__file__).parent.parent
NAMES = {
    "mask": "my-mask",
    "target": "my_target",
    "head": "mine",
    "method": "denoise",
    "shards": "mine2",
    "source": "mine3",
}
PIP = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-index", "--no-deps"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A package of each kind, as the command writes it."""
    folder = tmp_path_factory.mktemp("new")
    for kind, name in NAMES.items():
        done = CliRunner().invoke(plugins, ["new", kind, name, "--out", str(folder / kind)])
        assert done.exit_code == 0, done.output
        assert f"mae-pipe plugins check {name}\n" in done.output
    return {kind: folder / kind for kind in NAMES}


@pytest.fixture(scope="module")
def site(written: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of them installed by pip."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([*PIP, "--no-build-isolation", "--target", str(folder), *map(str, written.values())], check=True)
    return folder


def run(site: Path, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], check=False, capture_output=True, text=True, env=environment, cwd=cwd
    )


def test_the_packages_pass_their_own_tests_as_they_are(written: dict[str, Path], site: Path, tmp_path: Path) -> None:
    tests = [str(folder / "tests") for folder in written.values()]
    done = run(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not zero", *tests, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    count = sum(len(testing.checks(kind, fast=True)) for kind in NAMES) + 1  # a source has a test of its own
    assert f"{count} passed" in done.stdout or f"{count - 1} passed, 1 skipped" in done.stdout, done.stdout


@pytest.mark.slow
def test_the_packages_train_under_zero_3(site: Path, written: dict[str, Path], tmp_path: Path) -> None:
    tests = [str(folder / "tests") for kind, folder in written.items() if kind not in ("shards", "source")]
    done = run(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "zero", *tests, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_the_packages_are_listed_with_their_version_of_the_interface(site: Path, tmp_path: Path) -> None:
    shown = run(site, "-m", "mae_pipe", "plugins", cwd=tmp_path)
    rows = [line.split()[:3] for line in shown.stdout.splitlines()]
    assert [row for kind, name in NAMES.items() for row in rows if row[:2] == [kind, name]] == [
        ["mask", "my-mask", "mae-pipe-my-mask"],
        ["target", "my_target", "mae-pipe-my-target"],
        ["head", "mine", "mae-pipe-mine"],
        ["method", "denoise", "mae-pipe-denoise"],
        ["shards", "mine2", "mae-pipe-mine2"],
        ["source", "mine3", "mae-pipe-mine3"],
    ]
    assert "not usable" not in shown.stdout
    one = run(site, "-m", "mae_pipe", "plugins", "show", "mask", "my-mask", cwd=tmp_path).stdout
    assert "mae_pipe_my_mask.my_mask.MyMask, for mae_pipe.api 1.0" in one
    assert ["pull", "float", "1.0", "how", "much"] in [line.split()[:5] for line in one.splitlines()]


def test_the_packages_are_formatted(written: dict[str, Path]) -> None:
    pytest.importorskip("ruff", reason="ruff is not installed")
    folders = [str(folder) for folder in written.values()]
    settings = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    for check in (["format", "--check"], ["check", "--ignore", "S101"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *check, *settings, *folders], check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_packages_are_typed(written: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed")
    classes = [str(path) for folder in written.values() for path in folder.glob("mae_pipe_*/*.py")]
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = True\nfollow_imports = silent\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path), *classes],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},  # an editable install is not where mypy looks
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("kind", "name", "why"),
    [
        ("mask", "Mine", "'Mine' cannot name a plugin; take lower-case letters"),
        ("mask", "a b", "cannot name a plugin"),
        ("mask", "1st", "cannot name a plugin"),
        ("mask", "a__b", "cannot name a plugin"),
        ("mask", "class", "cannot name a plugin"),
        ("mask", "../x", "cannot name a plugin"),
        ("mask", "block", "there is a mask plugin 'block' already, of mae-pipe; choose another name"),
        ("head", "plugins", "a package mae_pipe_plugins is installed already"),
        (
            "loader",
            "mine",
            "there is no contract for the kind 'loader' to write; choose mask, target, head, method, shards, source",
        ),
    ],
)
def test_what_cannot_be_written_is_one_sentence(tmp_path: Path, kind: str, name: str, why: str) -> None:
    with pytest.raises(PluginError) as caught:
        scaffold.write(kind, name, tmp_path / "new", catalog=Catalog())
    assert str(caught.value).startswith(why) or why in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine").write_text("mine")
    with pytest.raises(PluginError, match="is not an empty folder; choose another with --out"):
        scaffold.write("mask", "mine", tmp_path / "new", catalog=Catalog())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PluginError, match="is not an empty folder"):
        scaffold.write("mask", "mine", tmp_path / "file", catalog=Catalog())


def test_by_default_the_folder_is_named_for_the_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = scaffold.write("mask", "my_own", catalog=Catalog())
    assert written.folder == Path("mae-pipe-my-own")
    assert all(path.is_file() for path in written.files)
