"""The house stays as docs/design.md draws it: who imports whom, what is shipped, what is never used."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mae_pipe import api, cli, recipe

ROOT = Path(__file__).parent.parent
TOP = {  # all that may lie at the top
    ".ci", ".gitignore", "benchmarks", "CHANGELOG.md", "docs", "LICENSE", "mae_pipe", "Makefile", "MANIFEST.in",
    "plugins", "pyproject.toml", "README.md", "requirements", "setup.cfg", "setup.py", "shards", "tests", "tools",
}  # fmt: skip
PAGES = {
    "getting-started.md",
    "sources.md",
    "writing-a-plugin.md",
    "shard-format.md",
    "recipes.md",
    "design.md",
    "exit-codes.md",
}
FORBIDDEN = {  # in shipped code: what would run or write what a stranger's file says
    "pickle.load", "pickle.loads", "marshal.loads", "dill.load", "os.system", "os.popen", "yaml.load", "eval", "exec",
    "numpy.load", "joblib.load", "subprocess.getoutput", "shutil.unpack_archive", "tempfile.mktemp",
}  # fmt: skip
LENGTH = 320  # lines; about 250 is where a file usually wants to become two


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[str]:
    """The absolute names that a file imports, anywhere in it; relative ones are left out."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ident(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_is_something_to_look_at() -> None:
    assert len(sources("mae_pipe")) > 25
    assert len(sources("plugins", "shards")) > 8


@pytest.mark.parametrize("path", sources("plugins", "shards"), ids=ident)
def test_plugins_and_shards_import_only_the_public_names(path: Path) -> None:
    ours = [name for name in imports(path) if name.partition(".")[0].startswith("mae_pipe") or name.startswith("tests")]
    allowed = {f"mae_pipe.api.{name}" for name in api.__all__}
    assert [name for name in ours if name not in allowed] == []


@pytest.mark.parametrize("path", sources("plugins", "shards"), ids=ident)
def test_relative_imports_stay_in_the_package(path: Path) -> None:
    depth = len(path.relative_to(ROOT).parts) - 1  # plugins/masks/block.py: 2
    levels = [node.level for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom)]
    assert all(level <= depth for level in levels)


@pytest.mark.parametrize("path", sources("mae_pipe"), ids=ident)
def test_the_trunk_names_no_branch(path: Path) -> None:
    branches = {"mae_pipe_plugins", "mae_pipe_shards", "plugins", "shards", "tools", "tests"}
    assert [name for name in imports(path) if name.partition(".")[0] in branches] == []
    assert not re.search("mae_pipe_plugins|mae_pipe_shards", path.read_text(encoding="utf-8"))


def test_only_the_engine_imports_deepspeed() -> None:
    users = {
        ident(p) for p in sources("mae_pipe", "plugins", "shards") if any(n.startswith("deepspeed") for n in imports(p))
    }
    assert users
    assert all(user.startswith("mae_pipe/engine/") for user in users)


@pytest.mark.parametrize("path", sources("mae_pipe", "plugins", "shards"), ids=ident)
def test_nothing_shipped_runs_what_a_file_says(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).replace("np.", "numpy.")
            assert called not in FORBIDDEN, f"{ident(path)}:{node.lineno}: {called}"
            assert not called.endswith((".extractall", ".extract")), f"{ident(path)}:{node.lineno}: {called}"
            given = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
            assert given.get("shell", "False") == "False", f"{ident(path)}:{node.lineno}: a shell"
            assert given.get("allow_pickle", "False") == "False", f"{ident(path)}:{node.lineno}: allow_pickle"
            assert given.get("weights_only", "True") == "True", f"{ident(path)}:{node.lineno}: weights_only"
            if called == "torch.load":
                assert given.get("weights_only") == "True", f"{ident(path)}:{node.lineno}: say weights_only=True"


@pytest.mark.parametrize("path", sources("mae_pipe", "plugins", "shards", "tools"), ids=ident)
def test_one_idea_a_file(path: Path) -> None:
    assert path.stem not in {"utils", "util", "helpers", "common", "misc"}
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LENGTH
    assert ast.get_docstring(tree(path)), "a file says first what it is"
    for node in tree(path).body:
        if isinstance(node, ast.ClassDef):
            assert not re.search("Manager|Helper|Utils?$|Impl$", node.name), node.name


def test_the_public_names_are_one_list() -> None:
    body = tree(ROOT / "mae_pipe" / "api.py").body
    block = next(node for node in body if isinstance(node, ast.If))
    typed = {f"{n.module}.{a.name}" for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert typed == {f"{home}.{name}" for name, home in api._HOME.items()}
    assert api.__all__ == sorted(api._HOME)


@pytest.mark.parametrize("name", api.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(api, name)
    assert (value.__doc__ or "").strip()
    if isinstance(value, type):
        methods = [
            m for n, m in vars(value).items() if not n.startswith("_") and callable(m) and not isinstance(m, type)
        ]
        assert [m.__name__ for m in methods if not m.__doc__] == []


@pytest.mark.parametrize("name", recipe.names())
def test_every_built_in_recipe_is_complete_in_itself(name: str) -> None:
    loaded = recipe.load(name)
    assert loaded.about, "one line for `mae-pipe recipes`"
    said = recipe.load(name).model_dump(exclude_unset=True)
    left = {
        f"{part}.{key}"
        for part, values in loaded.model_dump().items()
        if isinstance(values, dict)
        for key in values
        if key not in said.get(part, {})
    }
    free = {"mask.options", "target.options", "head.options", "optimizer.layer_decay", "optimizer.name"}
    free |= {f"engine.{key}" for key in recipe.EngineChoice.model_fields} - {"engine.zero", "engine.precision"}
    free |= {
        f"encoder.{key}" for key in ("class_tokens", "mask_tokens", "qk_norm", "layer_scale", "dropout", "positions")
    } | {"target.loss_on"}
    free |= {"method.name", "method.options", "optimizer.weight_decay_end", "optimizer.decay_all"}
    tables = (
        {"mask", "target", "decoder"} if isinstance(loaded, recipe.Pretrain) and loaded.method.name != "mae" else set()
    )
    free |= {f"{table}.{key}" for table in tables for key in type(getattr(loaded, table)).model_fields}
    free |= {"logging.pictures_every_epochs"} if tables else set()
    free |= {"saving.keep_every_epochs", "saving.background", *(f"faults.{k}" for k in recipe.FaultChoice.model_fields)}
    free |= {"data.order", "data.window", "data.lanes", "data.worker_kind"}
    lars, adamw = {"optimizer.momentum", "optimizer.trust"}, {"optimizer.betas", "optimizer.eps"}
    free |= adamw if loaded.optimizer.name in ("lars", "sgd") else lars
    free |= {"data.crop_share", "data.jitter", "data.interpolation", "data.randaugment", "data.erase"}
    free |= {f"mixing.{key}" for key in recipe.Mixing.model_fields}
    free |= {f"monitor.{key}" for key in recipe.Monitor.model_fields}
    free |= {f"sliding.{key}" for key in recipe.Sliding.model_fields} | {"schedule.shape"}
    free |= {"data.crop_scale", "data.crop_ratio"} if loaded.data.crop in ("centre", "none") else {"data.centre_share"}
    if not isinstance(loaded, recipe.Pretrain):  # what the pretrained run says
        free |= {"data.size", "data.mean", "data.std", "data.centre_share"}
    assert left - free == set()


def test_every_verb_has_a_module_and_a_summary() -> None:
    assert set(cli.VERBS) == set(cli._Verbs.SUMMARIES)
    assert {f"{module}.py" for module in cli.VERBS.values()} | {"__init__.py"} <= {
        path.name for path in (ROOT / "mae_pipe" / "cli").glob("*.py")
    }


def test_the_top_of_the_house_is_tidy() -> None:
    listed = subprocess.run(
        ["git", "ls-tree", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout: what else lies here is the user's")
    assert set(listed.stdout.split()) - TOP == set()


def test_the_pages_are_there_and_their_links_lead_somewhere() -> None:
    assert {path.name for path in (ROOT / "docs").glob("*.md")} >= PAGES
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
