"""The page of several runs, from run folders written by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mae_pipe import cli, reporting
from mae_pipe.charts import LOOKS, OTHERS, SERIES
from mae_pipe.errors import RunError
from mae_pipe.reporting import curves
from mae_pipe.reporting.comparison import render
from mae_pipe.reporting.differences import differences, of_recipes
from mae_pipe.reporting.gathered import gather
from mae_pipe.reporting.scores import scores_of
from tests.run_folders import EVIL, Elements, downstream, pretrained

PROBES = {"mae-s0": 0.70, "mae-s1": 0.74, "half": 0.61, "dino": 0.80}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds, another masking ratio, another method; probes of all, a finetuning elsewhere of one."""
    top = tmp_path_factory.mktemp("compared")
    folders = [
        pretrained(top / "mae-s0", 300),
        pretrained(top / "mae-s1", 300, seed=1),
        pretrained(top / "half", 300, ratio=0.5),
        pretrained(top / "dino", 300, method="dino", world=2),
    ]
    for folder in folders:
        downstream(folder / "probe", "probe", top1=PROBES[folder.name])
    with (top / "half" / "metrics.jsonl").open("a") as journal:
        journal.write(json.dumps({"kind": "warning", "step": 200, "rule": "rank", "text": f"collapse {EVIL}"}) + "\n")
    elsewhere = downstream(top / "elsewhere" / "tuned", "finetune", top1=0.9, pretrained=str(top / "dino"))
    return [*folders, elsewhere]


@pytest.fixture(scope="module")
def page(runs: list[Path]) -> str:
    return reporting.render(runs)


def rows_of(page: str, table: str) -> list[str]:
    """The first cell of each row, as it stands in the file."""
    body = page[page.index(f'data-key="{table}.') :]
    body = body[body.index("<tbody>") : body.index("</tbody>")]
    return [re.sub("<[^>]*>", "", row.partition("</td>")[0]).strip() for row in body.split("<tr>")[1:]]


def test_a_row_a_run_with_the_best_first(page: str) -> None:
    Elements(page)
    assert rows_of(page, "runs") == ["dino", "mae-s1", "mae-s0", "half"]
    assert 'data-key="runs.score-1" aria-sort="descending">Linear probe, pretrained' in page
    assert "First by linear probe, pretrained: dino, 80.0 % top-1." in page


def test_who_leads_is_said_by_the_mean_over_seeds_and_doubted(runs: list[Path], tmp_path: Path) -> None:
    page = reporting.render(runs[:3])
    assert "First by linear probe, pretrained: mae-s1, mae-s0, 72.0 % top-1, the mean of 2.</p>" in page
    near = downstream(tmp_path / "near", "probe", top1=0.71)
    assert "near (71.0 %) is nearer than the evaluated images can tell" in reporting.render([*runs[:2], near])


def test_a_downstream_run_stands_with_its_pretraining_run(runs: list[Path]) -> None:
    dino = next(run for run in gather(runs) if run.name == "dino")
    assert [result.folder for result in dino.results] == ["probe", "tuned"]
    (alone,) = gather(runs[-1:])
    assert (alone.name, alone.method, alone.encoder[0]) == ("tuned", "dino", "64 x 4, patch 4")


def test_seeds_are_put_together_with_mean_and_deviation(page: str) -> None:
    assert rows_of(page, "means") == ["mae-s1, mae-s0"]
    mean, deviation = np.mean([70.0, 74.0]), np.std([70.0, 74.0], ddof=1)
    assert re.search(rf'data-value="{mean:g}">{mean:.1f} % <span class="quiet">± {deviation:.1f}<', page)


def test_everything_from_data_is_escaped_on_this_page_too(page: str) -> None:
    assert EVIL not in page
    assert "step 200: collapse &lt;script&gt;" in page


def test_names_are_told_apart_by_what_they_lie_in(tmp_path: Path) -> None:
    folders = [pretrained(tmp_path / home / "run", 20, method="dino") for home in ("a", "b")]
    probe = downstream(folders[0] / "probe", "probe", top1=0.5)
    other = pretrained(tmp_path / "c" / "third", 20, method="dino")
    given = [*folders, folders[0], other]
    assert [run.name for run in gather(given)] == ["a/run", "b/run", "third"]
    assert [run.name for run in gather([probe])] == ["run/probe"]


def test_two_results_of_one_name_are_told_apart_by_folder(tmp_path: Path) -> None:
    runs = [pretrained(tmp_path / name, 20, method="dino") for name in ("a", "b")]
    for run in runs:
        for seed in (0, 1):
            downstream(run / f"tune-s{seed}", "finetune", top1=0.5 + 0.1 * seed, seed=seed)
    odd = downstream(runs[0] / "tune-long", "finetune", top1=0.9)
    recipe = {"task": "finetune", "labels_per_class": 10, "schedule": {"epochs": 9}}
    (odd / "recipe.json").write_text(json.dumps(recipe))
    scores = scores_of(gather(runs))
    found = {(column.heading, column.beside): key for key, column in scores.columns.items()}
    assert {heading for heading, _ in found} == {"Finetuned, pretrained"}
    assert {beside for _, beside in found} == {"10 labels a class, tune-s*", "10 labels a class, tune-long"}
    assert scores.main
    assert scores.columns[scores.main].beside.endswith("tune-s*")  # of both runs
    assert [row[scores.main].score for row in scores.by_run.values()] == pytest.approx([0.55, 0.55])


def test_scores_on_other_data_are_not_compared(tmp_path: Path) -> None:
    for name, data, images in (("a", "1f", 1000), ("b", "2e", 1000), ("c", "1f", 500), ("d", "1f", 1000)):
        pretrained(tmp_path / name, 20, method="dino")
        downstream(tmp_path / name / "probe", "probe", top1=0.5, images=images, samples_fingerprint=data)
    runs = gather([tmp_path / name for name in "abcd"])
    scores = scores_of(runs)
    assert len(scores.columns) == 3
    assert [run.name for run in runs if scores.of_main(run)] == ["a", "d"]
    assert all("images of val" in column.beside for column in scores.columns.values())


def test_losses_share_a_chart_only_where_they_are_one_quantity(runs: list[Path]) -> None:
    found = gather(runs)
    assert {what: [run.name for run in alike] for what, alike in curves.comparable(found).items()} == {
        "mae, pixel": ["mae-s0", "mae-s1", "half"],
        "dino": ["dino"],
    }
    plots = {plot.heading: plot for plot in curves.plots(found, curves.looks(found))}
    assert {"Loss: mae, pixel", "Loss: dino", "Held-out loss: dino", "Learning rate"} <= set(plots)
    assert {"Rank of the features (RankMe)", "k-NN accuracy without training", "Teacher entropy"} <= set(plots)
    assert plots["Loss: mae, pixel"].note == "They differ in mask.ratio, which by itself moves the loss."
    assert "not as many" in plots["Images per second"].note


def test_seeds_share_a_colour_and_many_runs_are_grey(tmp_path: Path) -> None:
    folders = [pretrained(tmp_path / f"r{n}", 10, method="dino", ratio=0.01 * n) for n in range(len(LOOKS) + 2)]
    twin = pretrained(tmp_path / "twin", 10, method="dino", ratio=0.0, seed=1)
    looks = curves.looks(gather([*folders, twin]))
    assert looks["twin"] == looks["r0"] == LOOKS[0]
    assert len({looks[f"r{n}"] for n in range(len(LOOKS))}) == len(LOOKS)
    assert looks["r10"] == looks["r11"] == OTHERS


SEEN = {  # Machado, Oliveira and Fernandes 2009, severity 1: linear RGB as each kind of eye sees it
    "all colours": np.eye(3),
    "no red": np.array([
        [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]
    ]),
    "no green": np.array([
        [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]
    ]),
    "no blue": np.array([
        [1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]
    ]),
}  # fmt: skip


@pytest.mark.parametrize("eye", SEEN)
def test_colours_of_curves_are_told_apart_by_every_eye(page: str, eye: str) -> None:
    found = re.findall(r"--series-(\d): #(\w{6});", page)
    assert len(found) == 2 * len(SERIES)
    for scheme in (found[: len(SERIES)], found[len(SERIES) :]):  # light, dark
        srgb = np.array([[int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)] for _, colour in scheme])
        linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        xyz = (
            np.clip(linear @ SEEN[eye].T, 0, 1)
            @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
        )
        f = np.cbrt(np.maximum(xyz / [0.9505, 1.0, 1.089], 0.008856))  # CIE 1976, the dark end flat
        lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
        apart = np.linalg.norm(lab[:, None] - lab[None], axis=2)[np.triu_indices(len(lab), 1)]
        assert apart.min() > 20  # 2.3 is just to be seen


def test_only_keys_that_differ_are_shown(runs: list[Path], tmp_path: Path) -> None:
    first, second = {"k": 1, "same": [], "f": 0.1 + 0.2}, {"k": 2, "same": [], "f": 0.3, "new": None}
    found = differences("x", {"a": first, "b": second})
    assert found.rows == (("k", ("1", "2")), ("new", (None, "none")))
    assert found.equal == (("same", "none"), ("f", "0.3"))
    (recipes,) = of_recipes(gather(runs))  # and none of the probes, which have one recipe
    assert {key for key, _ in recipes.rows} == {"seed", "method.name", "mask.ratio"}
    waiting = tmp_path / "waiting"  # a probe that was not measured yet
    waiting.mkdir()
    (waiting / "recipe.json").write_text('{"task": "probe", "seed": 5}')
    assert [table.title for table in of_recipes(gather([*runs, waiting]))] == ["Pretraining", "Probes"]


def test_pictures_of_the_same_images_stand_side_by_side(page: str) -> None:
    film = page[page.index("The same images, at the last step") : page.index("<details")]
    assert re.findall(r"<span>(.*?)</span><img", film) == [
        "input", "masked", "mae-s1, step 300", "mae-s0, step 300", "half, step 300",
    ]  # fmt: skip


def test_a_run_without_anything_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "recipe.json").write_text('{"task": "pretrain"}')
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": null}\n{"kind": "tr')
    page = render(gather([tmp_path / "bare", tmp_path / "torn"]))
    Elements(page)
    assert {*rows_of(page, "runs")} == {"bare", "torn"}


def test_the_command_takes_several_runs(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    said = CliRunner().invoke(cli._group, ["report", *map(str, runs[:2]), "--out", str(out)])
    assert (said.exit_code, said.output) == (0, f"{out}\n")
    assert "2 runs compared" in out.read_text()
    with pytest.raises(RunError, match="is not a run folder"):
        reporting.write([runs[0], tmp_path], out)
