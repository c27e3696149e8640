"""The command line: parse, then one call; imports nothing heavy until a verb runs."""

from __future__ import annotations

import importlib
import keyword
import os
import sys
from typing import ClassVar

import click

from mae_pipe import __version__, watchdog
from mae_pipe.errors import MaePipeError, closest

VERBS = {  # verb -> the module of mae_pipe.cli that holds a click command of that name (import: import_)
    "shard": "shard",
    "index": "index",
    "verify": "shard",
    "order": "order",
    "bench": "bench",
    "plan": "plan",
    "tune": "tune",
    "check": "check",
    "tokenizer": "tokenizer",
    "pretrain": "pretrain",
    "probe": "downstream",
    "finetune": "downstream",
    "embed": "embed",
    "import": "interop",
    "export": "interop",
    "evaluate": "evaluate",
    "slurm": "slurm",
    "reconstruct": "reconstruct",
    "report": "report",
    "reproduce": "reproduce",
    "plugins": "plugins",
    "recipes": "recipes",
    "doctor": "doctor",
    "demo": "demo",
}


class _Verbs(click.Group):
    """Finds a verb's module by name; ``--help`` reads the summaries below and imports none."""

    SUMMARIES: ClassVar[dict[str, str]] = {
        "shard": "Build shards from images in folders, tars, tables, ...",
        "index": "Index shards that others made, where they lie.",
        "verify": "Check every hash and count of shards.",
        "order": "Print which image comes when.",
        "bench": "Measure what this machine does with your images.",
        "plan": "Say what a recipe costs.",
        "tune": "Find what is fastest on this machine.",
        "check": "Check that a recipe or a run can learn at all.",
        "tokenizer": "Train or import a tokenizer of image patches.",
        "pretrain": "Pretrain a masked autoencoder on shards.",
        "probe": "Train a linear probe on a frozen encoder.",
        "finetune": "Finetune an encoder on labelled shards.",
        "embed": "Compute features of images once, to use many times.",
        "import": "Make a run folder of weights from elsewhere.",
        "export": "Write a run's weights for timm, Hugging Face, ...",
        "evaluate": "Measure a finetuned or probed run on any labelled images.",
        "slurm": "Write a batch script for a run on many nodes.",
        "reconstruct": "Draw what a run predicts for images.",
        "report": "Write the page of a run, or of several compared.",
        "reproduce": "Run the paper's tables and compare.",
        "plugins": "List the installed plugins; show, write or check one.",
        "recipes": "List, show, compare or copy recipes.",
        "doctor": "Check this machine and say what would go wrong.",
        "demo": "Run the whole path on real digits, or on your own images.",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        if name not in VERBS:
            ctx.fail(f"there is no command {name!r}{closest(name, VERBS)}")
        attribute = f"{name}_" if keyword.iskeyword(name) else name
        command = getattr(importlib.import_module(f"mae_pipe.cli.{VERBS[name]}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.SUMMARIES[name]) for name in VERBS])


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mae-pipe")
@click.option("--local_rank", hidden=True, expose_value=False, type=int)  # the deepspeed launcher puts it first
def _group() -> None:
    """From a folder of images to a pretrained, finetuned, probed and reported masked autoencoder."""


def main() -> None:
    """The ``mae-pipe`` command. Exit codes: docs/exit-codes.md."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of a lost rank it would tell pages, and not which
    try:
        sys.exit(_group.main(standalone_mode=False))  # None, or what a verb's ctx.exit() was given
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except MaePipeError as error:
        if watchdog.leave(error):  # of what all ranks say one is enough
            click.echo(f"mae-pipe: {error}", err=True)
        sys.exit(error.exit_code)
