"""The report page, from run folders written by hand."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mae_pipe import outcome, pictures, reporting
from mae_pipe.charts import Line, chart, smoothed
from mae_pipe.errors import DiskError, RunError
from mae_pipe.reporting.films import MOMENTS

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


def pretrained(folder: Path, steps: int = 1200, name: str = "digits") -> Path:
    """A run folder as pretraining leaves it."""
    rng = np.random.default_rng(0)
    rows = []
    for step in range(10, steps + 1, 10):
        loss = 0.35 + 0.6 * math.exp(-step / 200) + 0.01 * rng.standard_normal()
        lr = 1e-3 * min(step / 100, 0.5 * (1 + math.cos(math.pi * step / steps)))
        rows.append(
            {"kind": "train", "step": step, "epoch": step / 16, "images": step * 256, "loss": loss, "lr": lr}
            | {"grad_norm": 1 + rng.random(), "images_per_second": 1800 + 50 * rng.standard_normal()}
            | {"wait_share": 0.01 + 0.01 * rng.random(), "time": 1.0 * step}
        )
    write_rows(folder, rows)
    (folder / "recipe.json").write_text(
        json.dumps({"task": "pretrain", "about": f"{name} {EVIL}", "data": {"size": 28}, "mask": {"name": "random"}})
    )
    (folder / "run.json").write_text(
        json.dumps({"task": "pretrain", "command": ["mae-pipe", "pretrain", EVIL], "versions": {"torch": "2.13.0"}})
    )
    for number, step in enumerate(range(0, steps + 1, 150)):
        page = pictures.draw([strip_at(number / 9, n) for n in range(8)], footer="75 % hidden; <b>statistics</b>")
        pictures.save(page, folder / "pictures" / f"step-{step:07d}.png")
    return folder


def downstream(folder: Path, task: str, *, from_scratch: bool, top1: float, images: int = 1000) -> None:
    """A run folder as probing or finetuning leaves it."""
    rows = [
        {"kind": "eval", "step": 100 * n, "split": "val", "images": images, "loss": 1.0, "top1": top1 * n / 3}
        | {"top5": min(1.0, 1.1 * top1)}
        for n in (1, 2, 3)
    ]
    write_rows(folder, rows)
    (folder / "recipe.json").write_text(json.dumps({"task": task, "labels_per_class": 10}))
    (folder / "run.json").write_text(json.dumps({"task": task, "from_scratch": from_scratch}))


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


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = with_results(pretrained(tmp_path_factory.mktemp("runs") / "digits"), 0.712, 0.88, 0.61, 0.823)
    (run / reporting.CHECKS).write_text(json.dumps([{"claim": "equal", "holds": True, "detail": "to the last bit"}]))
    return run


def test_the_page_loads_nothing_and_runs_our_script_alone(full: Path) -> None:
    page = reporting.write([full]).read_text()
    elements = Elements(page).found
    tags = [tag for tag, _ in elements]
    assert not {*tags} & {"link", "iframe", "object", "embed", "form", "base"}
    assert tags.count("script") == 1
    script = page[page.index("<script>") + len("<script>") : page.index("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for t, a in elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    for _, attributes in elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#"))
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_everything_from_data_is_escaped(full: Path) -> None:
    page = reporting.render([full])
    assert EVIL not in page
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;statistics" in page


def test_the_page_shows_results_curves_pictures_recipe_and_environment(full: Path) -> None:
    page = reporting.render([full])
    for text in ("71.2 %", "88.0 %", "61.0 %", "82.3 %", "1,000", "mask.name", "versions.torch", "to the last bit"):
        assert text in page
    assert page.count("<svg") == 6  # loss, lr, gradient norm, speed, waiting, top-1
    labels = re.findall(r"<span>(.*?)</span><img", page)
    assert labels[:3] == ["input", "masked", "step 0"]
    assert labels[-2:] == ["step 1,200", "pasted"]
    assert len(labels) == 3 + MOMENTS


def test_the_same_run_gives_the_same_page(full: Path) -> None:
    assert reporting.render([full]) == reporting.render([full])


@pytest.mark.parametrize("missing", ["metrics.jsonl", "recipe.json", "run.json", "pictures", "torn"])
def test_a_missing_part_is_left_out(tmp_path: Path, missing: str) -> None:
    run = pretrained(tmp_path / "run", steps=150)
    if missing == "pictures":
        for path in (run / "pictures").iterdir():
            path.write_bytes(b"not a picture")
    elif missing == "torn":
        with (run / "metrics.jsonl").open("a") as journal:
            journal.write('{"kind": "train", "step": 99')
    else:
        (run / missing).unlink()
    page = reporting.render([run])
    Elements(page)
    assert ("Reconstructions" in page) == (missing != "pictures")
    assert ("Loss by step" in page) == (missing != "metrics.jsonl")
    assert ("Environment" in page) == (missing != "run.json")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        reporting.write([tmp_path])


def test_a_report_that_cannot_be_written_says_so(full: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="cannot write to"):
        reporting.write([full], tmp_path / "file" / "report.html")


def test_a_resumed_run_counts_each_step_once(tmp_path: Path) -> None:
    rows = [{"kind": "train", "step": s, "loss": v} for s, v in [(1, 3.0), (2, 2.5), (3, 9.0), (3, 2.0), (4, 1.0)]]
    write_rows(tmp_path, rows)
    assert [row["loss"] for row in outcome.metrics(tmp_path)[0]] == [3.0, 2.5, 2.0, 1.0]


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((0.70, 0.88, 0.60, 0.82), "Pretraining pays"),
        ((0.88, 0.70, 0.82, 0.60), "did not pay here"),
        ((0.70, 0.71, 0.60, 0.82), "did not pay clearly"),  # within what 1,000 images can tell
        ((0.70, 0.88, 0.82, 0.60), "did not pay clearly"),
    ],
)
def test_the_verdict_says_what_the_numbers_say(tmp_path: Path, numbers: tuple[float, ...], words: str) -> None:
    run = with_results(tmp_path / "run", *numbers)
    assert words in outcome.verdict(outcome.results(run))


def test_the_margin_is_wilsons(tmp_path: Path) -> None:
    downstream(tmp_path / "probe", "probe", from_scratch=False, top1=0.5, images=100)
    assert outcome.results(tmp_path)[0].margin == pytest.approx(0.0962, abs=2e-4)


def test_a_chart_takes_its_colours_from_the_page_and_escapes_names() -> None:
    lines = [Line("a <b> & $x^2$", [1, 2, 3], [1.0, float("nan"), 2.0]), Line("c", [1, 3], [0.5, 1.5], dots=True)]
    svg = chart(lines, title='"T" <t>', x_label="step")
    Elements(svg)
    assert svg.startswith("<svg")
    assert not re.search(r"#[0-9a-fA-F]{6}\b", svg.replace("&#", ""))
    assert "var(--series-1)" in svg
    assert "var(--series-2)" in svg
    assert "a &lt;b&gt; &amp; $x^2$" in svg
    assert "&lt;t&gt;" in svg


def test_smoothing_is_a_running_mean() -> None:
    assert smoothed([1, 2, 3, 4], 2) == [1, 1.5, 2.5, 3.5]
