"""``mae-pipe report``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The page to write.  [default: RUN/report.html; of several runs report.html here]",
)
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write the page of RUN, or of several runs compared.

    One run: its curves, monitors, warnings, pictures, results, recipe and environment. Several, of any methods: a
    table that sorts, their curves in the same charts, reconstructions side by side, probes and finetunings with means
    over seeds, and in what recipes and environments differ. RUN is a pretraining run, a probe or a finetuning; these
    stand with their pretraining run where it is given too.

    The page is one file that loads nothing, so it can be sent to anybody. It can be read without scripts; with them
    its tables sort, and its address, as report.html#sort=runs.loss, says how.
    """
    from mae_pipe import report as write

    click.echo(write(runs, out))
