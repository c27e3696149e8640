"""The paper's tables as data: what they want run, what is shared, ranks, and the scripts for SLURM."""

from __future__ import annotations

import random
import shlex
import subprocess
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from scipy import stats

from mae_pipe import cli
from mae_pipe.catalog import Catalog
from mae_pipe.costs import costs
from mae_pipe.errors import RecipeError
from mae_pipe.recipe import Pretrain, load
from mae_pipe.reproducing import cluster, folder, page, published, show
from mae_pipe.reproducing.folder import Reproduction
from mae_pipe.reproducing.forecast import BEGIN, Forecast
from mae_pipe.reproducing.published import scale, table
from mae_pipe.reproducing.ranks import spearman
from mae_pipe.reproducing.stems import Stem, Trained, extra_of, measures, plan

BOTH = [(name, size) for name in published.tables() for size in published.scales()]


@pytest.mark.parametrize(("name", "size"), BOTH)
def test_every_row_is_a_recipe_that_loads(name: str, size: str) -> None:
    chosen = table(name)
    study = plan(chosen, scale(size), seeds=1, data="x")
    assert len(study.cells) == sum(len(measures(row, chosen, scale(size))) for row in study.rows)
    for cell in study.cells:
        stem = study.stems[cell.stem]
        evaluation = next(one for one in stem.evaluations if one.name == cell.evaluation)
        assert stem.recipe.seed == evaluation.recipe.seed == cell.seed
        assert evaluation.recipe.task == published.MEASURES[cell.measure]


def test_the_numbers_are_the_papers() -> None:
    first = {name: table(name).rows[0] for name in ("1a", "1f", "fig5", "fig7")}
    assert [(row.finetuned, row.linear) for row in first.values()] == [
        (84.8, 65.5), (84.9, 73.5), (83.2, 54.6), (82.3, 57.3),
    ]  # fmt: skip
    for name in ("1a", "1b", "1c", "1d", "1e", "1f", "fig5", "fig7"):  # all have the baseline: 800 epochs, 8 x 512
        assert (84.9, 73.5) in [(row.finetuned, row.linear) for row in table(name).rows]


def test_equal_runs_of_two_tables_are_one() -> None:
    def stems(name: str, data: str = "x") -> set[str]:
        return set(plan(table(name), scale("paper"), seeds=3, data=data).stems)

    assert len(stems("1a") & stems("1f")) == 3  # the baseline's seeds
    assert len(stems("1a") & stems("1b") & stems("fig5") & stems("fig7")) == 3
    assert not stems("1f") & stems("1f", "other images")


@pytest.mark.parametrize(("change", "same"), [("monitor.every_epochs=1.0", True), ("optimizer.base_lr=0.1", False)])
def test_what_is_only_looked_at_makes_no_run_another_one(change: str, same: bool) -> None:
    first, second = (
        plan(table("1f"), scale("imagenette"), seeds=1, data="x", extra=extra).stems
        for extra in ({}, {"pretrain": [change]})
    )
    assert (set(first) == set(second)) == same


def test_one_pretraining_serves_many_measurements_and_one_tokenizer_all_seeds() -> None:
    rows = tuple(row for row in table("fig9").rows if row.series == "MAE")
    study = plan(table("fig9").model_copy(update={"rows": rows}), scale("digits"), seeds=2, data="x")
    assert len(study.stems) == 2
    assert {len(stem.evaluations) for stem in study.stems.values()} == {6}
    assert len(plan(table("1d"), scale("digits"), seeds=3, data="x").tokenizers) == 1


@pytest.mark.parametrize("size", published.scales())
def test_table_3_has_all_methods_under_one_protocol(size: str) -> None:
    chosen = table("3")
    study = plan(chosen, scale(size), seeds=1, data="x")
    methods = {stem.recipe.method.name for stem in study.stems.values() if not stem.scratch}
    assert methods >= {"mae", "beit", "dino", "moco_v3"}
    if size == "paper":
        probes = {cell.row.label for cell in study.cells if cell.measure == "linear"}
        assert not any("scratch" in label for label in probes)  # a probe of first weights is worth no GPU hours
        return
    assert "supervised" in methods
    shapes = {(s.recipe.encoder.width, s.recipe.encoder.depth, s.recipe.encoder.patch) for s in study.stems.values()}
    assert len(shapes) == 1
    for task in ("finetune", "probe"):
        evaluations = {
            e.name
            for stem in study.stems.values()
            if not stem.scratch
            for e in stem.evaluations
            if e.recipe.task == task
        }
        assert len(evaluations) == 1


@pytest.mark.parametrize(("name", "size"), BOTH)
def test_the_commands_of_a_page_are_commands(name: str, size: str) -> None:
    """Every word is understood: the group parses them, without running anything."""
    study = plan(table(name), scale(size), seeds=1, data="x")
    here = Reproduction(Path("OUT"), scale(size), Path("SHARDS"), "x", 10, ("finetune.ema=0.9",))
    for row in study.rows if study.table.measures else ():
        for line in page.commands(row, study, here):
            program, *words = shlex.split(line.partition(" > ")[0])
            assert program == "mae-pipe"
            command: click.Command = cli._group
            while isinstance(command, click.Group):
                named, words = words[0], words[1:]
                found = command.get_command(click.Context(command), named)
                assert found is not None, line
                command = found
            command.make_parser(click.Context(command)).parse_args(words)  # raises for an option that is not there


def test_a_row_may_be_measured_in_part_only() -> None:
    study = plan(table("3"), scale("imagenette"), seeds=2, data="x")
    original = [cell for cell in study.cells if cell.row.label == "scratch, original, ViT-L"]
    assert [(cell.measure, cell.seed) for cell in original] == [("finetuned", 0), ("finetuned", 1)]


def test_from_scratch_only_the_shape_and_the_images_count() -> None:
    row = next(row for row in table("3").rows if row.scratch)
    of = [row, row.model_copy(update={"changes": ("optimizer.base_lr=1.0",)})]
    of.append(row.model_copy(update={"changes": ("encoder.depth=2",)}))
    study = plan(table("3").model_copy(update={"rows": tuple(of)}), scale("digits"), seeds=1, data="x")
    assert len(study.stems) == 2


def test_ranks_are_scipys() -> None:
    draw = random.Random(0)
    for length in (2, 3, 5, 12):
        for _ in range(20):
            ours, theirs = ([float(draw.randrange(6)) for _ in range(length)] for _ in range(2))
            if len(set(ours)) == 1 or len(set(theirs)) == 1:
                assert spearman(ours, theirs) is None
            else:
                assert spearman(ours, theirs) == pytest.approx(stats.spearmanr(ours, theirs).statistic, abs=1e-12)
    assert spearman([], []) is None


def test_mask_tokens_in_the_encoder_cost_three_times_as_much() -> None:
    counted = []
    for row in table("1c").rows:
        assert row.clock is not None
        chosen = load(row.clock.recipe, row.clock.changes)
        assert isinstance(chosen, Pretrain)
        counted.append(costs(chosen, Catalog()).forward)
    assert counted[0] / counted[1] == pytest.approx(3.3, abs=0.35)


def test_a_change_says_what_it_changes() -> None:
    assert extra_of(["probe.seed=1", "probe.ema=0.9"]) == {"probe": ["seed=1", "ema=0.9"]}
    with pytest.raises(RecipeError, match="does not begin with what it changes"):
        extra_of(["schedule.epochs=1"])
    with pytest.raises(RecipeError, match=r"there is no table 'fig6' .did you mean 'fig"):
        table("fig6")


@pytest.mark.slow  # it counts ViT-L
def test_a_dry_run_touches_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["reproduce", "run", "1d", "--scale", "paper", "--shards", str(tmp_path / "later"), "--out", str(out)]
    done = CliRunner().invoke(cli._group, [*words, "--dry-run"], catch_exceptions=False)
    assert "12 pretrainings" in done.stderr
    assert "1 tokenizer serves all seeds" in done.stderr
    assert "GPU hours" in done.stderr
    assert not out.exists()


def test_a_dry_run_of_several_at_a_time_counts_their_beginnings_once(tmp_path: Path) -> None:
    here = folder.looked_at(scale("digits"), None, tmp_path / "out", (), Catalog())
    study = plan(table("1f"), scale("digits"), seeds=1, data="x")
    todo = list(study.stems.values())
    alone, together = (Forecast(here, Catalog(), tflops=1.0, at_once=jobs) for jobs in (1, 2))
    alone.speed = together.speed = 1e30  # so that beginnings are all that is left of the time
    pieces = sum(1 + len(stem.evaluations) for stem in todo)
    assert f"in all about {BEGIN * pieces / 60:.0f} minutes (" in alone.total(todo)
    assert f"in all about {BEGIN * pieces / 2 / 60:.0f} minutes (" in together.total(todo)
    assert alone.total(todo).endswith("GB more while one runs")
    assert together.total(todo).endswith("GB more while 2 run at a time")
    assert together.total(todo[:1]).endswith("GB more while one runs")


def test_show_names_a_key_once() -> None:
    lines = [line for line in show.rows("3", "imagenette") if line.startswith("  ")]
    assert sum("schedule.epochs=" in line for line in lines) > 4
    assert all(line.count(" schedule.epochs=") <= 1 for line in lines)
    assert any(line.endswith("schedule.epochs=5.0") or " schedule.epochs=5.0 " in line for line in lines)  # BEiT's own


def test_slurm_gets_arrays_that_wait_for_each_other(tmp_path: Path) -> None:
    study = plan(table("1d"), scale("digits"), seeds=1, data="x")
    stages: list[list[Stem | Trained]] = [[*study.tokenizers.values()], [*study.stems.values()]]
    wanted = cluster.Wanted(2, 8, "1:00:00", "/usr/bin/python3")
    text = cluster.script(stages, ["reproduce", "run", "1d"], [], tmp_path, wanted, "1d", 1)
    (tmp_path / "sbatch").write_text(
        '#!/bin/bash\nn=$(ls "$HERE" | grep -c asked); echo "$*" > "$HERE/asked$n"; cat > "$HERE/job$n"; echo "10$n"\n'
    )
    (tmp_path / "sbatch").chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HERE": str(tmp_path)}
    subprocess.run(["/bin/bash", "-c", text], check=True, env=env, capture_output=True)
    asked = [(tmp_path / f"asked{n}").read_text().strip() for n in range(3)]
    assert asked == ["--parsable", "--parsable --dependency=afterok:100", "--parsable --dependency=afterany:101"]
    array = (tmp_path / "job1").read_text()
    assert "#SBATCH --array=0-3" in array
    assert '--only "${pieces[$SLURM_ARRAY_TASK_ID]}"' in array
    assert all(name in array for name in study.stems)
    assert "reproduce page 1d" in (tmp_path / "job2").read_text()
    subprocess.run(["/bin/bash", "-n", str(tmp_path / "job1")], check=True)
