"""The commands `plugins` and `recipes`, and what strangers' packages may do to them: nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mae_pipe import __version__, recipe, specimens
from mae_pipe.cli.plugins import plugins
from mae_pipe.cli.recipes import recipes
from mae_pipe.errors import MaePipeError
from mae_pipe.provenance import as_toml

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


def shown_of(*command: str) -> tuple[int, list[list[str]], str]:
    """Exit code, words of each line, and the whole."""
    done = CliRunner().invoke(plugins, list(command), env={"COLUMNS": "250"})
    if isinstance(done.exception, MaePipeError):
        return done.exception.exit_code, [], str(done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, [line.split() for line in done.output.splitlines()], done.output


def test_list_is_what_the_bare_word_is() -> None:
    assert shown_of("list") == shown_of()


def test_show_says_what_a_plugin_does_and_its_options() -> None:
    code, lines, whole = shown_of("show", "mask", "block")
    assert code == 0
    assert ["mask", "block", "mae-pipe", __version__] in lines
    assert ["min_side", "float", "0.3"] in [line[:3] for line in lines]
    assert "Hide whole regions, not scattered patches (after BEiT" in whole
    assert tomllib.loads("\n".join(line.strip() for line in whole.splitlines() if " = " in line)) == {
        "name": "block",
        "options": {"blocks": 4, "min_side": 0.3, "max_side": 0.7},
    }
    assert "mae_pipe_plugins.masks.block.BlockMask, for mae_pipe.api 1.0" in whole


def test_show_resolves_a_name_for_a_type() -> None:
    _, lines, _ = shown_of("show", "head", "linear")
    assert ["pool", "Literal['token',", "'mean']", "'mean'"] in [line[:4] for line in lines]
    assert not {"width", "classes", "view"} & {line[0] for line in lines if line}  # given, not options


def test_show_knows_plugins_without_options_and_formats() -> None:
    assert "It takes no options." in shown_of("show", "mask", "random")[2]
    assert "mae-pipe shard IMAGES SHARDS --format webdataset" in shown_of("show", "shards", "webdataset")[2]


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (
            ["show", "maks", "block"],
            "there is no kind of plugin 'maks' (did you mean 'mask'?); kinds are mask, target,",
        ),
        (["show", "mask", "blok"], "there is no mask plugin 'blok' (did you mean 'block'?); installed are beit, "),
        (
            ["show", "target", "pixel", "--picture", "x.png"],
            "--picture draws what a mask hides, and 'pixel' is a target",
        ),
        (["show", "mask", "block", "--picture", "x.png", "--set", "blocks=0"], "got 0; it takes blocks: int = 4, min_"),
        (
            ["show", "mask", "block", "--picture", "x.png", "--set", "blocks"],
            "--set 'blocks' is not of the form option=",
        ),
        (["new", "masks", "x"], "there is no kind of plugin 'masks' (did you mean 'mask'?)"),
        (["check", "blok"], "there is no plugin 'blok' (did you mean 'block'?); installed are "),
        (["check", "block", "--kind", "head"], "there is no head plugin 'block'"),
    ],
)
def test_what_is_not_there_is_one_sentence(
    command: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, said = shown_of(*command)
    assert code == 5
    assert why in said
    assert "\n" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_picture_of_a_mask_shows_as_many_patches_hidden_as_the_ratio_says(tmp_path: Path) -> None:
    pages = {}
    for name, options in (("grid", []), ("block", ["--set", "blocks=2"])):
        path = tmp_path / f"{name}.png"
        assert shown_of("show", "mask", name, "--picture", str(path), *options)[0] == 0
        with Image.open(path) as picture:
            pages[name] = np.asarray(picture.convert("RGB"))
    hidden = {name: int((page == specimens.HIDDEN).all(-1).sum()) for name, page in pages.items()}
    cells = [(grid, ratio) for grid in specimens.GRIDS for ratio in specimens.RATIOS]
    patches = sum(grid.size - int(grid.size * (1 - ratio)) for grid, ratio in cells)
    wanted = specimens.SHOWN * patches * specimens.PATCH**2
    assert wanted <= hidden["grid"] < wanted * 1.001  # letters' edges may be of that grey, too
    assert wanted <= hidden["block"] < wanted * 1.001
    assert not np.array_equal(pages["grid"][60:], pages["block"][60:])


def test_check_tells_what_holds_and_what_does_not(tmp_path: Path) -> None:
    code, lines, whole = shown_of("check", "block", "--fast")
    assert code == 0
    assert whole.splitlines()[-1] == "mask block of mae-pipe: 13 passed, 1 skipped"
    assert ["honours", "the", "ratio", "passed"] in [line[:4] for line in lines]
    path = tmp_path / "mine.py"
    path.write_text(
        "import torch\nfrom mae_pipe.api import MaskSampler, plugin\n"
        "@plugin('mine')\nclass Mine(MaskSampler):\n    '''All mine.'''\n"
        "    def scores(self, images, grid, rng):\n        return torch.rand(len(images), grid.size)\n"
    )
    code, lines, whole = shown_of("check", "mine", "--fast", "--plugin", str(path))
    assert code == 5
    assert "Mine.scores on a 1 x 1 grid drew from PyTorch's global generator; draw from what it is given" in whole
    failed = {" ".join(line[: line.index("FAILED")]) for line in lines if "FAILED" in line}
    assert failed >= {"ignores global randomness", "repeats itself", "depends on its image alone", "follows devices"}
    assert f"{len(failed)} failed" in whole.splitlines()[-1]


def test_check_asks_for_the_kind_where_two_have_the_name(tmp_path: Path) -> None:
    path = tmp_path / "two.py"
    path.write_text(
        "from mae_pipe.api import MaskSampler, Target, plugin\n"
        "@plugin('two')\nclass One(MaskSampler): '''One.'''\n"
        "@plugin('two')\nclass Two(Target): '''Two.'''\n"
    )
    code, _, said = shown_of("check", "two", "--plugin", str(path))
    assert (code, said) == (5, "mask and target plugins are called 'two'; say which with --kind mask")


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
    assert reasons["broken_future.FutureMask"] == "built for version 2.0 of mae_pipe.api, and this mae-pipe has 1.0"
    assert reasons["broken_taken.RandomMask"].startswith("mask 'random' is already taken by mae_pipe_plugins.masks")
    done = run("-c", TRAIN.format(mask="random"), site=strangers)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "RandomMask True\n"


def test_naming_a_plugin_for_another_version_is_one_sentence(strangers: Path) -> None:
    why = (
        "the plugin 'future' of mae-pipe-broken was built for version 2.0 of mae_pipe.api, and this mae-pipe has 1.0; "
        "upgrade mae-pipe, or take a mae-pipe-broken for 1\n"
    )
    for command in (["show", "mask", "future"], ["check", "future"]):
        done = run("-m", "mae_pipe", "plugins", *command, site=strangers)
        assert (done.returncode, done.stderr) == (5, f"mae-pipe: {why}")


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
from mae_pipe.tasks import MaskedAutoencoder
recipe = Pretrain(
    data=Data(size=32), mask=MaskChoice(name={mask!r}),
    encoder=EncoderShape(width=16, depth=1, heads=2, patch=8), decoder=DecoderShape(width=16, depth=1, heads=2),
)
try:
    task = MaskedAutoencoder.from_recipe(recipe, Catalog())
except MaePipeError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
from mae_pipe.data.batch import Batch
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
    shown = CliRunner().invoke(recipes, ["show", "mae_vit_base_patch16", "--plain", *arguments])
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
