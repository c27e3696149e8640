"""``mae-pipe doctor``: what this machine has, and what would go wrong on it."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mae_pipe.doctor import examine
from mae_pipe.machine import Finding

SIGNS = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "broken": ("BROKEN", "bold red")}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one JSON object.")
@click.option(
    "--for",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    show_default="the current folder",
    help="Where shards and runs would go.",
)
def doctor(as_json: bool, folder: Path) -> None:
    """Check this machine, and say what would go wrong and the command that mends it.

    Ends with 0 when nothing is broken (warnings are none), else with 1.
    """
    with Console(stderr=True).status("importing torch, DeepSpeed and FFCV: some seconds"):
        findings = examine(folder)
    broken = sum(finding.state == "broken" for finding in findings)
    if as_json:
        click.echo(json.dumps({"broken": broken, "findings": [dataclasses.asdict(f) for f in findings]}, indent=1))
    else:
        _show(findings, Console())
    sys.exit(1 if broken else 0)


def _show(findings: list[Finding], console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("", "what", "found"):
        table.add_column(title, overflow="fold", no_wrap=title != "found")
    for finding in findings:
        table.add_row(Text(*SIGNS[finding.state]), Text(finding.name, "bold"), Text(finding.found))
    console.print(table)
    wrong = [finding for finding in findings if finding.state != "ok"]
    for finding in wrong:
        name = Text(f"{finding.name}: ", SIGNS[finding.state][1])
        console.print(name + Text(finding.trouble, ""), soft_wrap=True)
        if finding.mend:
            console.print(Text(f"    {finding.mend}", "cyan"), soft_wrap=True)
    if not wrong:
        console.print("Nothing would go wrong.")
