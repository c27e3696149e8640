"""What the documents show is real: the plugin runs, and every command is one that there is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import torch

from mae_pipe import cli
from mae_pipe.catalog import Catalog
from mae_pipe.contracts import Grid
from mae_pipe.rng import Rng
from mae_pipe.testing import check_mask_sampler

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page that are in ``language``; "" is that of commands."""
    parts = re.split(r"^```(\w*)\n", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    fences = zip(parts[1::4], parts[2::4], strict=False)  # text, opening, block, closing, text, ...
    return [block for opening, block in fences if opening == language]


def whole(block: str) -> list[str]:
    """Its lines; those that end in a backslash go on in the next."""
    return block.replace("\\\n", "").splitlines()


def commands() -> list[tuple[str, str]]:
    """(page, command) for each `mae-pipe VERB ...` in a block of commands."""
    lines = [(page.name, line) for page in PAGES for block in blocks(page, "") for line in whole(block)]
    found = [(name, line) for name, line in lines if line.startswith(("mae-pipe ", "torchrun ", "deepspeed ", "srun "))]
    return sorted(set(found))


def test_the_readmes_plugin_is_twenty_lines_and_keeps_its_contract(tmp_path: Path) -> None:
    (code,) = blocks(ROOT / "README.md", "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    path = tmp_path / "centre.py"
    path.write_text(code)
    sampler = Catalog(files=(path,)).build("mask", "centre", {"noise": 0.01})
    check_mask_sampler(sampler)
    scores = sampler.scores(torch.zeros(2, 3, 20, 20), Grid(5, 5), Rng(0, torch.arange(2)))
    assert scores.argmax(dim=1).tolist() == [12, 12]


def test_there_are_commands_to_check() -> None:
    assert {line.split()[1] for _, line in commands() if line.startswith("mae-pipe ")} == set(cli.VERBS)


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_shown_is_one_that_there_is(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    name = next(word for word in words if word in ("mae-pipe", "mae_pipe"))
    verb, *arguments = words[words.index(name) + 1 :]
    command = cli._group.get_command(click.Context(cli._group), verb)
    assert command is not None
    try:
        command.make_context(verb, arguments)
    except click.BadParameter as error:
        if "does not exist" not in error.message:  # a path of the reader's
            raise
