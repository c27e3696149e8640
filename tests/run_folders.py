"""Run folders written by hand, as pretraining, probing and finetuning leave them; and pages read back."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from mae_pipe import pictures

EVIL = '<script>alert("1")</script>&amp;'


def strip_at(sharpness: float, number: int, side: int = 28, patch: int = 4) -> pictures.Strip:
    """A disc that a made-up model knows the better the nearer ``sharpness`` is to 1."""
    y, x = np.mgrid[:side, :side]
    disc = 255 * (np.hypot(x - side / 2, y - side / 2 - number % 3) < side / 4 + number)
    given = np.repeat(disc.astype(np.uint8)[..., None], 3, axis=2)
    noise = np.random.default_rng(number).integers(0, 255, given.shape)
    predicted = (sharpness * given + (1 - sharpness) * noise).astype(np.uint8)
    cells = np.random.default_rng(number).random((side // patch, side // patch)) < 0.75
    hidden = np.kron(cells, np.ones((patch, patch))).astype(bool)
    pasted = np.where(hidden[..., None], predicted, given)
    return pictures.Strip(given, pictures.hide(given, hidden), predicted, pasted)


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def pretrained(
    folder: Path, steps: int = 1200, *, seed: int = 0, method: str = "mae", ratio: float = 0.75, world: int = 1
) -> Path:
    """A run folder as pretraining leaves it; the worse, the further ``ratio`` is from 0.75."""
    rng = np.random.default_rng(seed)
    rows = []
    for step in range(10, steps + 1, 10):
        loss = 0.35 + abs(ratio - 0.75) + 0.6 * math.exp(-step / 200) + 0.01 * rng.standard_normal()
        lr = 1e-3 * min(step / 100, 0.5 * (1 + math.cos(math.pi * step / steps)))
        rows.append(
            {"kind": "train", "step": step, "epoch": step / 16, "images": step * 256, "loss": loss, "lr": lr}
            | {"grad_norm": 1 + rng.random(), "images_per_second": 1800 + 50 * rng.standard_normal()}
            | {"wait_share": 0.01 + 0.01 * rng.random(), "time": 1.0 * step}
        )
        if step % 100 == 0:
            rows.append(
                {"kind": "monitor", "step": step, "epoch": step / 16, "images": 512, "held_out_loss": loss + 0.01}
                | {"rankme": 20 + step / 100, "knn": 0.5, "teacher_entropy": 0.9}
            )
    write_rows(folder, rows)
    recipe = {
        "task": "pretrain",
        "about": f"digits {EVIL}",
        "seed": seed,
        "data": {"size": 28},
        "method": {"name": method, "options": {}},
        "encoder": {"width": 64, "depth": 4, "patch": 4},
        "mask": {"name": "random", "ratio": ratio},
        "target": {"name": "pixel", "options": {}},
    }
    kinds = ("mask", "target", "method") if method == "mae" else ("method",)
    about = {
        "task": "pretrain",
        "world": world,
        "command": ["mae-pipe", "pretrain", EVIL],
        "versions": {"torch": "2.13.0"},
        "plugins": [{"kind": kind, "name": "one", "package": "mae-pipe", "version": "1"} for kind in kinds],
    }
    (folder / "recipe.json").write_text(json.dumps(recipe))
    (folder / "run.json").write_text(json.dumps(about))
    if method != "mae":
        return folder
    for number, step in enumerate(range(0, steps + 1, 150)):
        page = pictures.draw([strip_at(number / 9, n) for n in range(8)], footer="75 % hidden; <b>statistics</b>")
        pictures.save(page, folder / "pictures" / f"step-{step:07d}.png")
    return folder


def downstream(
    folder: Path, task: str, *, top1: float, from_scratch: bool = False, images: int = 1000, seed: int = 0, **about: str
) -> Path:
    """A run folder as probing or finetuning leaves it."""
    rows = [
        {"kind": "eval", "step": 100 * n, "split": "val", "images": images, "loss": 1.0, "top1": top1 * n / 3}
        | {"top5": min(1.0, 1.1 * top1)}
        for n in (1, 2, 3)
    ]
    write_rows(folder, rows)
    (folder / "recipe.json").write_text(json.dumps({"task": task, "labels_per_class": 10, "seed": seed}))
    (folder / "run.json").write_text(json.dumps({"task": task, "from_scratch": from_scratch, **about}))
    return folder


def with_results(run: Path, *numbers: float) -> Path:
    for (name, task, scratch), top1 in zip(
        [
            ("probe-untrained", "probe", True),
            ("probe", "probe", False),
            ("finetune-scratch", "finetune", True),
            ("finetune", "finetune", False),
        ],
        numbers,
        strict=True,
    ):
        downstream(run / name, task, from_scratch=scratch, top1=top1)
    return run


class Elements(HTMLParser):
    """Every tag with its attributes; fails on tags that are not closed in order."""

    VOID = ("meta", "img", "link", "br", "hr", "input")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
