"""Plugins are found by kind and name, from their source, and only imported when asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from mae_pipe import api
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
