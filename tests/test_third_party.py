"""A stranger's distribution lives its whole life: wheel, clean environment, training, removal."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

STRIPES = Path(__file__).parent / "third_party" / "stripes"
RECIPE = """
task = "pretrain"
[data]
size = 16
global_batch = 12
micro_batch = 12
workers = 1
[encoder]
width = 32
depth = 1
heads = 2
patch = 4
[decoder]
width = 16
depth = 1
heads = 2
[mask]
name = "stripes"
options = { height = 2 }
[optimizer]
base_lr = 0.05
[schedule]
epochs = 10  # of two steps
warmup_epochs = 1
[engine]
precision = "fp32"
[logging]
every_steps = 1
"""


class Environment:
    """A virtual environment above the one of the tests: what is installed into it is in no other."""

    def __init__(self, folder: Path) -> None:
        self.python = folder / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        (site,) = folder.glob("lib/python*/site-packages")
        below = sysconfig.get_paths()["purelib"]
        (site / "below.pth").write_text(f"import site; site.addsitedir({below!r})\n")

    def run(self, *command: str | Path, code: int = 0) -> str:
        environment = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            [str(self.python), *map(str, command)],
            check=False,
            capture_output=True,
            text=True,
            env=environment,
            cwd=self.python.parent,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr if code else done.stdout

    def pip(self, *command: str | Path) -> None:
        pip = [sys.executable, "-m", "pip", "--python", self.python, "--disable-pip-version-check", "-q", *command]
        subprocess.run(list(map(str, pip)), check=True)


def rows(listed: str) -> list[list[str]]:
    return [line.split()[:3] for line in listed.splitlines()]


@pytest.mark.slow
def test_a_wheel_is_installed_trained_with_and_removed(image_folder: Path, tmp_path: Path) -> None:
    sources = shutil.copytree(STRIPES, tmp_path / "stripes")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", sources]
    subprocess.run(list(map(str, build)), check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    clean = Environment(tmp_path / "environment")
    ours = ["mask", "stripes", "mae-pipe-stripes"]
    assert ours not in rows(clean.run("-m", "mae_pipe", "plugins"))

    clean.pip("install", "--no-index", wheel)  # with what it requires: mae-pipe, which is there
    assert ours in rows(clean.run("-m", "mae_pipe", "plugins"))
    around = subprocess.run([sys.executable, "-m", "mae_pipe", "plugins"], check=True, capture_output=True, text=True)
    assert ours not in rows(around.stdout)
    shards, run, recipe = tmp_path / "shards", tmp_path / "run", tmp_path / "stripes.toml"
    recipe.write_text(RECIPE)
    clean.run("-m", "mae_pipe", "shard", image_folder, shards)
    clean.run("-m", "mae_pipe", "pretrain", recipe, "--shards", shards, "--out", run)
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in steps if row["kind"] == "train"}
    assert sorted(losses) == list(range(1, 21))
    assert losses[20] < losses[1]
    (installed,) = tmp_path.glob("environment/lib/python*/site-packages/mae_pipe_stripes/stripes.py")
    assert {
        "kind": "mask",
        "name": "stripes",
        "package": "mae-pipe-stripes",
        "version": "1.0",
        "sha256": hashlib.sha256(installed.read_bytes()).hexdigest(),
    } in json.loads((run / "run.json").read_text())["plugins"]

    clean.pip("uninstall", "-y", "mae-pipe-stripes")
    assert ours not in rows(clean.run("-m", "mae_pipe", "plugins"))
    said = clean.run("-m", "mae_pipe", "pretrain", recipe, "--shards", shards, "--out", tmp_path / "again", code=5)
    assert "there is no mask plugin 'stripes'" in said
    assert not (tmp_path / "again").exists()
