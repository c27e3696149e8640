"""Writes what the steps of gpu_figures.sh left as NAME.md and NAME.json, named for the GPU.

python tools/gpu_report.py FIGURES OUT --device cuda
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mae_pipe import outcome

REHEARSAL = "rehearsal on a CPU: no figure of a GPU"
NOTHING, UNREHEARSED = "nothing run", "cannot be rehearsed without a GPU"
OUTCOMES = {"0": "done", "124": "too long", "137": "too long", "skipped": "no time left", "unrehearsed": UNREHEARSED}
# The end of pytest, where tests were skipped or left out and none was run: its exit code is 0 all the same, or 5.
NONE_RUN = re.compile(r"=*\s*(no tests ran|\d+ (skipped|deselected)(, \d+ (skipped|deselected))*) in [\d.]+s")


def gathered(figures: Path) -> dict[str, Any]:
    """Of every step: its outcome, seconds, the end of its output; every file of figures; what runs reached."""
    steps = {}
    for line in (figures / "steps").read_text(encoding="utf-8").splitlines():
        name, code, seconds = line.split()
        log = figures / f"{name}.log"
        said = log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:] if log.is_file() else []
        steps[name] = {"outcome": outcome_of(code, said), "seconds": int(seconds), "said": said}
    files = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(figures.glob("*.json"))}
    runs = {run.name: reached(run) for run in sorted(figures.glob("runs/*")) if outcome.metrics(run)[0]}
    return {"steps": steps, **files, "runs": runs}


def outcome_of(code: str, said: list[str]) -> str:
    """In words; what pytest has skipped is no pass."""
    if code in ("0", "5") and said and NONE_RUN.match(said[-1]):
        return NOTHING
    return OUTCOMES.get(code, f"failed, exit code {code}")


def reached(run: Path) -> dict[str, Any]:
    """A run's first and last loss, and medians of its rows but for the first, in which things begin; its probes."""
    rows = outcome.metrics(run)[0]
    found: dict[str, Any] = {"steps": rows[-1]["step"], "losses": [rows[0]["loss"], rows[-1]["loss"]]}
    for name in ("images_per_second", "wait_share"):
        found[name] = statistics.median(row[name] for row in rows[1:] or rows)
    return found | {each.name: each.score for each in outcome.results(run)}


def table(heads: str, rows: Iterable[Iterable[Any]]) -> list[str]:
    """A table of Markdown after an empty line."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    count = heads.count("|") + 1
    return ["", f"| {heads} |", "|---" * count + "|", *(f"| {' | '.join(row)} |" for row in cells)]


def page(title: str, found: dict[str, Any]) -> str:
    """The steps, what each check found, medians of contestants, what runs reached; then what each step said."""
    lines = [f"# {title}"]
    steps = found["steps"].items()
    last = {name: next((line for line in reversed(step["said"]) if line.strip()), "") for name, step in steps}
    lines += table(
        "step | outcome | seconds | the end of what it said",
        ((name, step["outcome"], step["seconds"], last[name][:120]) for name, step in steps),
    )
    for name in ("correct", "compiled"):
        if name in found:
            lines += table(
                f"{name} | figure | at most | holds",
                (
                    (each["name"], f"{each['figure']:.2g}", f"{each['most']:g}", "yes" if each["holds"] else "NO")
                    for each in found[name]
                ),
            )
    lines += table(
        "contest | who | images/s | memory, GB",
        (
            (name, who, f"{statistics.median(rates):.4g}", f"{figures['memory_gb'][who]:.2f}")
            for name, figures in found.items()
            if name.startswith("step-")
            for who, rates in figures["images_per_second"].items()
        ),
    )
    lines += table(
        "run | figure | value",
        (
            (run, name, value if name == "losses" else f"{value:.4g}")
            for run, figures in found["runs"].items()
            for name, value in figures.items()
        ),
    )
    for name, step in steps:
        if step["said"]:
            lines += ["", f"## {name}", "", "```", *step["said"], "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("figures", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    options = parser.parse_args()
    title = REHEARSAL
    if options.device == "cuda":
        import torch

        title = torch.cuda.get_device_name()
    found = {"about": title, **gathered(options.figures)}
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    for ending, text in (("md", page(title, found)), ("json", json.dumps(found, indent=1) + "\n")):
        (options.out / f"{name}.{ending}").write_text(text, encoding="utf-8")
    print(f"{title}: {options.out / name}.md and .json")
    fine = {OUTCOMES["0"]} if options.device == "cuda" else {OUTCOMES["0"], UNREHEARSED, NOTHING}
    bad = [f"{name} ({step['outcome']})" for name, step in found["steps"].items() if step["outcome"] not in fine]
    if bad:
        sys.exit(f"gpu_report: not done: {', '.join(bad)}")


if __name__ == "__main__":
    main()
