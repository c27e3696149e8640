"""The commands `plugins` and `recipes`, and what strangers' packages may do to them: nothing."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from mae_pipe import recipe
from mae_pipe.cli.plugins import plugins
from mae_pipe.cli.recipes import as_toml, recipes

THIRD_PARTY = Path(__file__).parent / "third_party"


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with both strangers' distributions installed by pip."""
    folder = tmp_path_factory.mktemp("strangers")
    shutil.copytree(THIRD_PARTY, folder / "source")
    (folder / "source" / "broken" / "broken_syntax.py").write_text("def broken(:\n")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    pip += ["--no-deps", "--no-build-isolation", "--target", str(folder / "site")]
    subprocess.run([*pip, *(str(folder / "source" / name) for name in ("stripes", "broken"))], check=True)
    return folder / "site"


def run(*command: str, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    if site is not None:
        environment["PYTHONPATH"] = str(site)
    command = (sys.executable, *command)
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)


def test_plugins_lists_kind_name_package_and_summary() -> None:
    shown = CliRunner().invoke(plugins, [], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    rows = [line.split() for line in shown.output.splitlines()]
    assert ["mask", "random", "mae-pipe", "Hide", "patches", "uniformly"] in [row[:6] for row in rows]
    assert "not usable" not in shown.output


def test_plugins_lists_a_local_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from mae_pipe.api import MaskSampler, plugin\n"
        "@plugin('mine')\nclass Mine(MaskSampler):\n    '''All mine.'''\n    def scores(self, images, grid, rng): ..."
    )
    shown = CliRunner().invoke(plugins, ["--plugin", str(path)], env={"COLUMNS": "300"})
    assert shown.exit_code == 0
    assert ["mask", "mine", str(path), "All", "mine."] in [line.split() for line in shown.output.splitlines()]


@pytest.mark.parametrize("command", [["--help"], ["plugins"], ["recipes"]])
def test_these_commands_answer_at_once_and_import_no_torch(command: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['mae-pipe', *sys.argv[1:]]; from mae_pipe.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'timm', 'deepspeed', 'webdataset', 'ffcv'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = run("-c", code, *command)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # processor time: what others do on the machine hardly counts
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0, done.stderr
        assert done.stdout
    assert min(seconds) < 0.5


def test_a_strangers_package_comes_through_the_same_door(strangers: Path) -> None:
    shown = run("-m", "mae_pipe", "plugins", site=strangers)
    assert shown.returncode == 0, shown.stderr
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert ["mask", "stripes", "mae-pipe-stripes", "Hide", "whole", "rows", "of", "patches."] in rows
    done = run("-c", TRAIN.format(mask="stripes"), site=strangers)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "StripesMask True\n"


def test_broken_packages_are_listed_with_the_reason_and_break_nothing(strangers: Path) -> None:
    assert run("-m", "mae_pipe", "--help", site=strangers).returncode == 0
    shown = run("-m", "mae_pipe", "plugins", site=strangers)
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr == ""
    reasons = dict(
        line.removeprefix("not usable: ").split(": ", 1)
        for line in shown.stdout.splitlines()
        if line.startswith("not usable: ")
    )
    assert reasons["broken_gone"] == "ModuleNotFoundError: no module 'broken_gone'"
    assert reasons["broken_names"] == "SystemExit: this module ends the process"
    assert reasons["broken_syntax"].startswith("SyntaxError: ")
    assert reasons["broken_taken.RandomMask"].startswith("mask 'random' is already taken by mae_pipe_plugins.masks")
    done = run("-c", TRAIN.format(mask="random"), site=strangers)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "RandomMask True\n"


def test_naming_a_broken_plugin_is_one_sentence(strangers: Path) -> None:
    done = run("-c", TRAIN.format(mask="broken"), site=strangers)
    assert done.returncode == 5
    assert done.stderr == (
        "the mask plugin 'broken' of mae-pipe-broken cannot be loaded: ModuleNotFoundError: "
        "No module named 'a_library_that_nobody_has'; mend or uninstall mae-pipe-broken\n"
    )


TRAIN = """
import sys, torch
from mae_pipe.catalog import Catalog
from mae_pipe.errors import MaePipeError
from mae_pipe.recipe import Data, DecoderShape, EncoderShape, MaskChoice, Pretrain
from mae_pipe.tasks import Pretraining
recipe = Pretrain(
    data=Data(size=32), mask=MaskChoice(name={mask!r}),
    encoder=EncoderShape(width=16, depth=1, heads=2, patch=8), decoder=DecoderShape(width=16, depth=1, heads=2),
)
try:
    task = Pretraining.from_recipe(recipe, Catalog())
except MaePipeError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
from mae_pipe.data.stream import Batch
numbers = torch.arange(2)
loss = task(Batch(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), numbers, numbers, numbers))
print(type(task.sampler).__name__, bool(loss.isfinite()))
"""


def test_recipes_lists_every_built_in_one() -> None:
    shown = CliRunner().invoke(recipes, [], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    listed = {line.split()[0] for line in shown.output.splitlines() if line.strip()}
    assert set(recipe.names()) <= listed


@pytest.mark.parametrize("name", recipe.names())
def test_a_shown_recipe_is_the_recipe(name: str) -> None:
    shown = CliRunner().invoke(recipes, ["show", name])
    assert shown.exit_code == 0
    assert recipe.parse(tomllib.loads(shown.output), name) == recipe.load(name)


def test_a_shown_recipe_has_the_changes(tmp_path: Path) -> None:
    changes = ['about=a "quoted" \\ line ☃ 😀', "mask.options={a.b = [1, 2.5], 'odd key' = true}", "seed=7"]
    arguments = [part for change in changes for part in ("--set", change)]
    shown = CliRunner().invoke(recipes, ["show", "mae_vit_base_patch16", *arguments])
    assert shown.exit_code == 0, shown.output
    (tmp_path / "mine.toml").write_text(shown.output, encoding="utf-8")
    again = recipe.load(str(tmp_path / "mine.toml"))
    assert again == recipe.load("mae_vit_base_patch16", changes)
    assert (again.seed, again.about) == (7, 'a "quoted" \\ line ☃ 😀')
    assert as_toml(again) == shown.output


@pytest.mark.parametrize(
    ("name", "lr", "shape"),
    [
        ("mae_vit_base_patch16", 2.4e-3, (768, 12, 12, 16)),
        ("mae_vit_large_patch16", 2.4e-3, (1024, 24, 16, 16)),
        ("mae_vit_huge_patch14", 2.4e-3, (1280, 32, 16, 14)),
    ],
)
def test_the_papers_recipes_have_the_papers_values(name: str, lr: float, shape: tuple[int, ...]) -> None:
    loaded = recipe.load(name)
    assert isinstance(loaded, recipe.Pretrain)
    assert loaded.lr == pytest.approx(lr)
    assert (loaded.encoder.width, loaded.encoder.depth, loaded.encoder.heads, loaded.encoder.patch) == shape
    assert (loaded.schedule.epochs, loaded.schedule.warmup_epochs, loaded.data.global_batch) == (800, 40, 4096)
    assert (loaded.optimizer.betas, loaded.optimizer.weight_decay) == ((0.9, 0.95), 0.05)
    assert (loaded.mask.name, loaded.mask.ratio, loaded.data.crop_scale) == ("random", 0.75, (0.2, 1.0))
    assert (loaded.decoder.width, loaded.decoder.depth, loaded.decoder.heads) == (512, 8, 16)
