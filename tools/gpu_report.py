"""Writes what the steps of gpu_figures.sh left as NAME.md and NAME.json, named for the GPU.

python tools/gpu_report.py FIGURES OUT --device cuda
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

REHEARSAL = "rehearsal on a CPU: no figure of a GPU"


def gathered(figures: Path) -> dict[str, Any]:
    """Of every step: its exit code ("0", "124": too long, "skipped"), seconds, end of its output; and its figures."""
    steps = {}
    for line in (figures / "steps").read_text(encoding="utf-8").splitlines():
        name, code, seconds = line.split()
        log = figures / f"{name}.log"
        said = log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:] if log.is_file() else []
        steps[name] = {"code": code, "seconds": int(seconds), "said": said}
    found: dict[str, Any] = {"steps": steps}
    found |= {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(figures.glob("*.json"))}
    metrics = figures / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()] if metrics.is_file() else []
    waits = [row["wait_share"] for row in rows if "wait_share" in row]
    if waits:
        found["wait_share"] = statistics.median(waits)
    return found


def page(title: str, found: dict[str, Any]) -> str:
    """The table of steps, then what each said."""
    lines = [f"# {title}", "", "| step | exit code | seconds |", "|---|---|---|"]
    lines += [f"| {name} | {step['code']} | {step['seconds']} |" for name, step in found["steps"].items()]
    if "wait_share" in found:
        lines += ["", f"Share of time waiting for data in `train`, median: {found['wait_share']:.3f}"]
    for name, step in found["steps"].items():
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
    bad = [f"{name} ({step['code']})" for name, step in found["steps"].items() if step["code"] != "0"]
    if bad:
        sys.exit(f"gpu_report: not done, by exit code: {', '.join(bad)}")


if __name__ == "__main__":
    main()
