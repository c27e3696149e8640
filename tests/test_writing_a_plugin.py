"""The page on plugins, done word by word: every file is written, every command run, in an environment of its own."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from mae_pipe import recipe, testing
from mae_pipe.catalog import Catalog
from mae_pipe.cli.plugins import plugins
from mae_pipe.testing.conformance import CHECKS
from tests.test_third_party import Environment

PAGE = Path(__file__).parent.parent / "docs" / "writing-a-plugin.md"


def blocks() -> Iterator[tuple[str, str, str]]:
    """(language, block, the paragraph before it) of the page, in order."""
    parts = re.split(r"^```(\w*)\n(.*?)^```\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for before, language, block in zip(parts[::3], parts[1::3], parts[2::3], strict=False):
        yield language, block, before.strip().rpartition("\n\n")[2]


def file_of(before: str) -> str | None:
    """The file that a paragraph announces: the last one that it names, before a colon at its end."""
    named = re.findall(r"`([\w/.-]+\.py)`", before)
    return named[-1] if named and before.endswith(":") else None


def commands() -> list[str]:
    return [line for language, block, _ in blocks() if not language for line in block.splitlines() if line.strip()]


class Shell:
    """Runs lines as a reader would, in a folder of his own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "reader"
        self.folder.mkdir()
        python = Environment(folder / "environment").python
        for name, module in (("mae-pipe", "mae_pipe"), ("pip", "pip"), ("pytest", "pytest")):
            script = python.parent / name
            script.write_text(f'#!/bin/sh\nexec "{python}" -m {module} "$@"\n')
            script.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "200",
            "OMP_NUM_THREADS": "1",
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say that there shall be none
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PYTEST_ADDOPTS": "-p no:cacheprovider",
        }
        self.environment.pop("PYTHONPATH", None)

    def run(self, line: str) -> str:
        done = subprocess.run(
            shlex.split(line, comments=True),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_leads_from_an_empty_folder_to_a_checked_plugin(image_folder: Path, tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    (shell.folder / "IMAGES").symlink_to(image_folder)
    said: dict[str, list[str]] = {}
    for language, block, before in blocks():
        if language == "python" and (name := file_of(before)):
            (shell.folder / name).write_text(block)
        elif not language:
            for line in block.splitlines():
                said.setdefault(line, []).append(shell.run(line))

    def rows(text: str) -> list[list[str]]:
        return [line.split()[:3] for line in text.splitlines()]

    listed = said["mae-pipe plugins"]
    ours = ["mask", "stripes", "mae-pipe-stripes"]
    assert [ours in rows(text) for text in listed] == [True, False]  # before and after it was removed
    checks = [(line, texts[0].splitlines()[-1]) for line, texts in said.items() if "plugins check" in line]
    assert len(checks) == 6
    assert all(last.endswith("passed") or last.endswith("skipped") for _, last in checks), checks
    assert (shell.folder / "stripes.png").read_bytes()[:4] == b"\x89PNG"
    assert len(list((shell.folder / "dist").glob("mae_pipe_stripes-*.whl"))) == 1
    for run in ("RUN", "RUN2", "RUN3"):
        assert (shell.folder / run / "encoder.safetensors").is_file()


def test_the_pages_plugins_keep_their_contracts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {Path(name).name: block for language, block, before in blocks() if (name := file_of(before))}
    for name, block in files.items():
        (tmp_path / name).write_text(block)
    catalog = Catalog(files=tuple(tmp_path / name for name in files if not name.startswith("test_")))
    for kind, plugin in (("mask", "stripes"), ("target", "mean_colour"), ("head", "centres"), ("method", "agree")):
        results = list(testing.run(kind, plugin, catalog=catalog, fast=True))
        assert {result.check: result.detail for result in results if result.outcome == "failed"} == {}
    monkeypatch.syspath_prepend(tmp_path)
    module = runpy.run_path(str(tmp_path / "test_mine.py"))
    module["test_the_plugins_keep_their_contracts"]()


def test_there_are_commands_and_files() -> None:
    assert len(commands()) >= 15
    files = [name for language, _, before in blocks() if language == "python" and (name := file_of(before))]
    assert files[0] == "mae-pipe-stripes/mae_pipe_stripes/stripes.py"
    assert files[1:] == ["mean_colour.py", "centres.py", "agree.py", "test_mine.py"]


def test_every_subcommand_is_on_the_page() -> None:
    shown = {line.split()[2] for line in commands() if line.startswith("mae-pipe plugins ")}
    assert shown == set(plugins.commands) - {"list"}


def test_the_table_of_checks_is_complete() -> None:
    rows = re.findall(r"^\| ([a-z0-9 ]+) \|((?: x? ?\|){6})", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    kinds = list(CHECKS)
    table = {kind: [name for name, marks in rows if "x" in marks.split("|")[kinds.index(kind)]] for kind in kinds}
    assert {kind: sorted(names) for kind, names in table.items()} == {k: sorted(testing.checks(k)) for k in kinds}


def test_the_pages_recipe_is_one() -> None:
    (text,) = [block for language, block, _ in blocks() if language == "toml"]
    parsed = recipe.parse({**tomllib.loads(text), "task": "pretrain"}, "the page")
    assert isinstance(parsed, recipe.Pretrain)
    assert (parsed.mask.name, parsed.mask.options) == ("stripes", {"height": 2})
