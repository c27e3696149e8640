"""The command line: quick to answer, one sentence and an exit code for every mistake."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mae_pipe import __version__, cli, errors

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "deepspeed", "webdataset", "timm", "torchvision", "matplotlib", "numpy", "ffcv")
# What an answer may import in all, the interpreter's own modules among them (torch: 1,200).
MODULES = 400


def mae_pipe(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "mae_pipe", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["plugins"], ["plugins", "list"], ["plugins", "show", "head", "linear"], ["recipes"]]
)
def test_what_only_shows_imports_nothing_heavy(arguments: list[str]) -> None:
    """The answer is there at once: `tools/bench_cli.py` has the seconds, which a test on a shared machine has not."""
    code = (
        "import json, sys; from mae_pipe.cli import main; sys.argv[0] = 'mae-pipe'\n"
        "try: main()\n"
        "except SystemExit as end: print(json.dumps([end.code or 0, sorted(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    *shown, last = done.stdout.splitlines()
    status, modules = json.loads(last)
    assert status == 0
    assert shown
    assert not set(HEAVY) & set(modules)
    assert len(modules) < MODULES


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    shown = CliRunner().invoke(cli._group, [verb, "--help"], prog_name="mae-pipe")
    assert shown.exit_code == 0, shown.output
    assert shown.output.startswith(f"Usage: mae-pipe {verb}")
    command = cli._group.get_command(click.Context(cli._group), verb)
    assert command is not None
    assert command.help
    unexplained = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]
    assert unexplained == []


def test_help_lists_every_verb_with_its_summary() -> None:
    shown = CliRunner().invoke(cli._group, ["--help"]).output
    assert list(cli._Verbs.SUMMARIES) == list(cli.VERBS)
    for verb, summary in cli._Verbs.SUMMARIES.items():
        assert re.search(rf"^  {verb} +{re.escape(summary)}$", shown, re.MULTILINE)


def test_an_unknown_verb_names_the_closest() -> None:
    done = mae_pipe("pretrian")
    assert done.returncode == 2
    assert done.stderr.endswith("Error: there is no command 'pretrian' (did you mean 'pretrain'?)\n")


def test_an_unknown_option_is_told() -> None:
    done = mae_pipe("plugins", "--nonsense")
    assert done.returncode == 2
    assert "--nonsense" in done.stderr


def test_a_mistake_is_one_sentence_and_its_exit_code() -> None:
    done = mae_pipe("recipes", "show", "mae_vit_bass_patch16")
    assert done.returncode == errors.RecipeError.exit_code
    assert done.stdout == ""
    assert done.stderr.startswith("mae-pipe: there is no recipe 'mae_vit_bass_patch16' (did you mean")
    assert done.stderr.count("\n") == 1


def test_the_version_is_told() -> None:
    assert mae_pipe("--version").stdout == f"mae-pipe, version {__version__}\n"


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (errors.DiskError("the disk is full"), 7, "mae-pipe: the disk is full\n"),
        (errors.TrainingError("the loss is nan"), 8, "mae-pipe: the loss is nan\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (click.exceptions.Exit(3), 3, ""),
        (SystemExit(1), 1, ""),
    ],
)
def test_what_a_verb_raises_becomes_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raised: BaseException, code: int, said: str
) -> None:
    @click.command()
    def verb() -> None:
        raise raised

    monkeypatch.setattr(cli._Verbs, "get_command", lambda self, ctx, name: verb)
    monkeypatch.setattr(sys, "argv", ["mae-pipe", "doctor"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == code
    assert capsys.readouterr().err.lstrip("\n") == said


def test_the_documented_exit_codes_are_those_of_the_errors() -> None:
    text = (ROOT / "docs" / "exit-codes.md").read_text(encoding="utf-8")
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    kinds: list[type[errors.MaePipeError]] = [errors.MaePipeError, *errors.MaePipeError.__subclasses__()]
    codes = [kind.exit_code for kind in kinds]
    assert len(set(codes)) == len(codes)
    assert documented == {0, 2, 130, *codes}
