"""``mae-pipe report``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The page to write.  [default: RUN/report.html]")
def report(run: Path, out: Path | None) -> None:
    """Write RUN's report: one page with its curves, pictures, results, recipe and environment.

    The page is one file that loads nothing, so it can be sent to anybody.
    """
    from mae_pipe import report as write

    click.echo(write(run, out))
