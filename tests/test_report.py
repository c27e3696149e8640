"""The report page, from run folders written by hand."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from mae_pipe import outcome, reporting
from mae_pipe.charts import Line, chart, smoothed
from mae_pipe.errors import DiskError, RunError
from mae_pipe.reporting.films import MOMENTS
from tests.run_folders import EVIL, Elements, downstream, pretrained, with_results, write_rows


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = with_results(pretrained(tmp_path_factory.mktemp("runs") / "digits"), 0.712, 0.88, 0.61, 0.823)
    (run / reporting.CHECKS).write_text(json.dumps([{"claim": "equal", "holds": True, "detail": "to the last bit"}]))
    return run


@pytest.fixture(scope="module")
def page(full: Path) -> str:
    return reporting.write([full]).read_text()


def test_the_page_loads_nothing_and_runs_our_script_alone(page: str) -> None:
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


def test_everything_from_data_is_escaped(page: str) -> None:
    assert EVIL not in page
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;statistics" in page


def test_the_page_shows_results_curves_pictures_recipe_and_environment(page: str) -> None:
    for text in ("71.2 %", "88.0 %", "61.0 %", "82.3 %", "1,000", "mask.name", "versions.torch", "to the last bit"):
        assert text in page
    assert page.count("<svg") == 9  # loss, RankMe, k-NN, entropy, lr, gradient norm, speed, waiting, top-1
    labels = re.findall(r"<span>(.*?)</span><img", page)
    assert labels[:3] == ["input", "masked", "step 0"]
    assert labels[-2:] == ["step 1,200", "pasted"]
    assert len(labels) == 3 + MOMENTS


def test_the_same_run_gives_the_same_page(full: Path, page: str) -> None:
    assert reporting.render([full]) == page


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


def test_seeds_are_one_line_with_their_mean_and_deviation(tmp_path: Path) -> None:
    scores = (0.70, 0.72, 0.77)
    for seed, score in enumerate(scores):
        downstream(tmp_path / "run" / f"probe-s{seed}", "probe", top1=score, seed=seed)
    downstream(tmp_path / "run" / "probe-100", "probe", top1=0.9, how="cached")
    (alone, three) = outcome.repeated(outcome.results(tmp_path / "run"))
    assert (alone.folders, alone.deviation) == ("probe-100", None)
    assert three.folders == "probe-s*"
    assert three.score == pytest.approx(0.73)
    assert three.deviation == pytest.approx(np.std(scores, ddof=1))


def test_warnings_of_the_journal_stand_on_the_page_once(tmp_path: Path) -> None:
    row = {"kind": "warning", "step": 4000, "rule": "rank", "text": "RankMe is 1.2: <i>collapse</i>"}
    write_rows(tmp_path / "run", [row, row, row | {"text": "no opinion"}])
    page = reporting.render([tmp_path / "run"])
    assert page.count("step 4,000: RankMe is 1.2: &lt;i&gt;collapse&lt;/i&gt;") == 1
    assert page.count("step 4,000: no opinion") == 1


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
