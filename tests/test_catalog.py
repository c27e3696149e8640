"""Plugins are found by kind and name, from their source, and only imported when asked for."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from mae_pipe import __version__, api
from mae_pipe.catalog import Catalog, plugin
from mae_pipe.contracts import MaskSampler, Target
from mae_pipe.errors import PluginError

LOCAL = '''
"""A local file."""
from mae_pipe.api import MaskSampler, plugin

@plugin("corner")
class CornerMask(MaskSampler):
    """Hide the top left first.

    More of the same.
    """
    def __init__(self, sharp: float = 2.0, *, name: str = "x"):
        if sharp <= 0:
            raise ValueError(f"sharp must be positive, got {sharp}")
        self.sharp = sharp
    def scores(self, images, grid, rng):
        return rng.uniform(grid.size) - self.sharp * grid.centres().sum(1)
'''


def local(tmp_path: Path, text: str = LOCAL, name: str = "local.py") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_the_built_in_plugins_are_all_there() -> None:
    catalog = Catalog()
    assert {"random", "block", "grid"} <= set(catalog.names("mask"))
    assert {"pixel", "normalized_pixel"} <= set(catalog.names("target"))
    assert {"linear", "mlp"} <= set(catalog.names("head"))
    assert all(entry.package == "mae-pipe" and entry.summary for entry in catalog.entries.values())
    assert catalog.broken == {}


def test_a_plugin_is_found_by_kind_and_name() -> None:
    assert Catalog().find("mask", "random").__plugin__ == "random"
    assert issubclass(Catalog().find("target", "pixel"), Target)
    with pytest.raises(PluginError, match="there is no target plugin 'random'; installed are"):
        Catalog().find("target", "random")


def test_an_unknown_name_shows_the_closest() -> None:
    with pytest.raises(PluginError, match=r"no mask plugin 'randon' \(did you mean 'random'\?\)"):
        Catalog().find("mask", "randon")


def test_an_unknown_option_shows_the_known_ones() -> None:
    with pytest.raises(PluginError, match=r"'blokcs' \(did you mean 'blocks'\?\); it takes blocks: int = 4, min_"):
        Catalog().build("mask", "block", {"blokcs": 3})


def test_a_local_file_is_read_with_its_options_and_checks(tmp_path: Path) -> None:
    catalog = Catalog(files=(local(tmp_path),))
    entry = catalog.entries["mask", "corner"]
    assert (entry.package, entry.summary) == (str(tmp_path / "local.py"), "Hide the top left first.")
    assert list(map(str, entry.options)) == ["sharp: float = 2.0", "name: str = 'x'"]
    sampler = catalog.build("mask", "corner", {"sharp": 3.0})
    assert isinstance(sampler, MaskSampler)
    with pytest.raises(
        PluginError, match=r"sharp must be positive, got -1\.0; it takes sharp: float = 2\.0, name: str = 'x'"
    ):
        catalog.build("mask", "corner", {"sharp": -1})


def test_a_local_file_hides_an_installed_plugin_of_its_name(tmp_path: Path) -> None:
    catalog = Catalog(files=(local(tmp_path, LOCAL.replace('"corner"', '"random"')),))
    assert catalog.find("mask", "random").__name__ == "CornerMask"
    assert Catalog().find("mask", "random").__name__ == "RandomMask"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import a_library_that_nobody_has", "ModuleNotFoundError"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit('no')", "SystemExit"),
        ("from mae_pipe.api import plugin\n@plugin('x')\nclass X: pass", "derives from no contract"),
        ("x = 1", "plugin"),
    ],
)
def test_a_local_file_that_is_wrong_is_one_sentence(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(PluginError, match=why) as caught:
        Catalog(files=(local(tmp_path, text),)).names("mask")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_local_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"there is no plugin file .*nothing\.py"):
        Catalog(files=(tmp_path / "nothing.py",)).names("mask")


@pytest.mark.parametrize("name", ["", "Random", " x"])
def test_a_plugins_name_is_plain(name: str) -> None:
    with pytest.raises(ValueError, match="lower case"):
        plugin(name)


def test_marking_registers_nothing() -> None:
    @plugin("nowhere")
    class Nowhere(MaskSampler):
        """Marked only."""

    assert "nowhere" not in Catalog().names("mask")
    assert Nowhere.__plugin__ == "nowhere"  # type: ignore[attr-defined]


def test_every_public_name_exists_and_nothing_else_does() -> None:
    for name in api.__all__:
        assert getattr(api, name).__name__ == name
    assert dir(api) == api.__all__ == sorted(api.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Randon'"):
        api.Randon  # noqa: B018


def package(folder: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], point: str = "strange") -> None:
    """Install a stranger's distribution ``strange`` 0.3 into ``folder``, as pip leaves it."""
    for name, text in files.items():
        (folder / "strange" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "strange" / name).write_text(text)
    (folder / "strange-0.3.dist-info").mkdir()
    (folder / "strange-0.3.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 0.3\n")
    (folder / "strange-0.3.dist-info" / "entry_points.txt").write_text(f"[mae_pipe.plugins]\nx = {point}\n")
    monkeypatch.syspath_prepend(folder)


ODD = "from mae_pipe.api import MaskSampler, plugin\n@plugin('odd')\nclass Odd(MaskSampler): '''Odd.'''\n"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"__init__.py": "MAE_PIPE_API = 2", "odd.py": ODD}, "2.0"),
        ({"__init__.py": "MAE_PIPE_API: int = 0", "odd.py": ODD}, "0.0"),
        ({"__init__.py": "MAE_PIPE_API = 1", "odd.py": f"MAE_PIPE_API = (1, 9)\n{ODD}"}, "1.9"),
        ({"__init__.py": "", "odd.py": f"MAE_PIPE_API = 2\n{ODD.replace('MaskSampler', 'Exporter')}"}, "2.0"),
    ],
)
def test_a_plugin_for_another_version_is_listed_as_not_usable_and_refused_when_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], said: str
) -> None:
    package(tmp_path, monkeypatch, files)
    catalog = Catalog()
    assert "odd" not in catalog.names("mask")
    assert catalog.broken == {"strange.odd.Odd": f"built for version {said} of mae_pipe.api, and this mae-pipe has 1.0"}
    with pytest.raises(
        PluginError, match=rf"'odd' of strange was built for version {said} of mae_pipe\.api, and this m"
    ):
        catalog.find("mask", "odd")
    assert "strange" not in sys.modules
    assert catalog.find("mask", "random").__plugin__ == "random"


@pytest.mark.parametrize("said", ["", "MAE_PIPE_API = 1", "MAE_PIPE_API = (1, 0)"])
def test_a_plugin_for_this_version_or_for_none_is_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    package(tmp_path, monkeypatch, {"__init__.py": said, "inner/__init__.py": "", "inner/odd.py": ODD}, "strange.inner")
    catalog = Catalog()
    assert catalog.broken == {}
    assert catalog.entries["mask", "odd"].api == api.VERSION == (1, 0)
    assert "strange" not in sys.modules


def test_a_version_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch, {"__init__.py": "MAE_PIPE_API = 'one'", "odd.py": ODD})
    catalog = Catalog()
    assert "odd" not in catalog.names("mask")
    assert catalog.broken["strange"].endswith("is 'one'; expected a number such as 1, or (1, 0)")


def test_a_local_file_for_another_version_is_refused_when_named(tmp_path: Path) -> None:
    catalog = Catalog(files=(local(tmp_path, f"MAE_PIPE_API = 3\n{LOCAL}"),))
    with pytest.raises(PluginError, match=r"'corner' of .*local\.py was built for version 3\.0 .*; upgrade mae-pipe"):
        catalog.find("mask", "corner")


def test_a_run_can_keep_what_a_plugin_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch, {"__init__.py": "", "odd.py": ODD})
    path = local(tmp_path)
    catalog = Catalog(files=(path,))
    assert catalog.record("mask", "odd") == {
        "kind": "mask",
        "name": "odd",
        "package": "strange",
        "version": "0.3",
        "sha256": hashlib.sha256(ODD.encode()).hexdigest(),
    }
    assert catalog.record("mask", "corner") == {
        "kind": "mask",
        "name": "corner",
        "package": str(path),
        "version": "",
        "sha256": hashlib.sha256(LOCAL.encode()).hexdigest(),
    }
    assert catalog.record("mask", "random")["version"] == __version__


def test_listing_a_local_file_does_not_run_it(tmp_path: Path) -> None:
    catalog = Catalog(files=(local(tmp_path, LOCAL + "\nraise SystemExit('run')"),))
    assert "corner" in catalog.names("mask")
    with pytest.raises(PluginError, match="SystemExit: run"):
        catalog.find("mask", "corner")


def test_two_files_of_one_name_are_two(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    catalog = Catalog(files=(local(tmp_path / "a"), local(tmp_path / "b", LOCAL.replace("corner", "other"))))
    first, second = catalog.find("mask", "corner"), catalog.find("mask", "other")
    assert (first.__plugin__, second.__plugin__) == ("corner", "other")
    assert first.__module__ != second.__module__
