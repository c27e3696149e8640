"""A plugin's options: read from its source, with what the docstring says; a wrong one is refused in one sentence."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from mae_pipe.catalog import Catalog
from mae_pipe.docstrings import said_of
from mae_pipe.errors import PluginError

MANY = '''
"""A sampler with every type of option."""
from __future__ import annotations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional
from pydantic import Field
from mae_pipe.api import Grid, MaskSampler, Rng, plugin
if TYPE_CHECKING:
    from somewhere import Unknown

@plugin("many")
class Many(MaskSampler):
    """Takes everything.

    ``whole`` patches, and a share of them, ``real``, may be set.

    Args:
        flag: whether.
        word, where: a word
            and a place.
    """

    def __init__(
        self, must: int, whole: int = 1, real: float = 0.5, flag: bool = False, word: str = "x",
        choice: Literal["a", "b"] = "a", maybe: Optional[int] = None, other: float | None = None,
        sizes: list[int] = [1], table: dict[str, float] = {}, pair: tuple[int, int] = (1, 2),
        where: Path = Path("."), free=None, odd: Unknown = None, positive: Annotated[int, Field(ge=1)] = 1,
    ) -> None:
        self.__dict__.update(vars())
    def scores(self, images, grid, rng): return rng.uniform(grid.size)
'''


@pytest.fixture
def many(tmp_path: Path) -> Catalog:
    (tmp_path / "many.py").write_text(MANY)
    return Catalog(files=(tmp_path / "many.py",))


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        ({"real": 3}, "real", 3.0),
        ({"real": float("inf")}, "real", float("inf")),
        ({"maybe": None}, "maybe", None),
        ({"maybe": 4}, "maybe", 4),
        ({"other": 1}, "other", 1.0),
        ({"sizes": [1, 2]}, "sizes", [1, 2]),
        ({"table": {"a": 1}}, "table", {"a": 1.0}),
        ({"pair": [3, 4]}, "pair", (3, 4)),
        ({"where": "a/b"}, "where", Path("a/b")),
        ({"free": [object]}, "free", [object]),
        ({"odd": {"any": 1}}, "odd", {"any": 1}),
        ({"positive": 2}, "positive", 2),
        ({}, "word", "x"),
    ],
)
def test_an_option_arrives_as_its_annotation_says(
    many: Catalog, options: dict[str, Any], name: str, value: object
) -> None:
    found = getattr(many.build("mask", "many", {"must": 1, **options}), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "the option 'must' must be given"),
        ({"must": 1, "wohle": 2}, r"there is no option 'wohle' \(did you mean 'whole'\?\)"),
        ({"must": "1"}, "must must be int, got '1'"),
        ({"must": True}, "must must be int, got True"),
        ({"must": 1.0}, "must must be int, got 1.0"),
        ({"must": 1, "real": "0.5"}, "real must be float, got '0.5'"),
        ({"must": 1, "real": True}, "real must be float, got True"),
        ({"must": 1, "flag": 1}, "flag must be bool, got 1"),
        ({"must": 1, "word": 1}, "word must be str, got 1"),
        ({"must": 1, "choice": "c"}, "choice must be 'a' or 'b', got 'c'"),
        ({"must": 1, "maybe": "a"}, r"maybe must be Optional\[int\], got 'a'"),
        ({"must": 1, "sizes": ["a"]}, r"sizes must be list\[int\], got \['a'\]"),
        ({"must": 1, "table": {"a": "b"}}, r"table must be dict\[str, float\], got \{'a': 'b'\}"),
        ({"must": 1, "pair": [1, 2, 3]}, r"pair must be tuple\[int, int\], got \[1, 2, 3\]"),
        ({"must": 1, "positive": 0}, r"positive must be Annotated.*, got 0 \(Input should be greater than or equal to"),
    ],
)
def test_a_wrong_option_is_refused_in_one_sentence_with_the_signature(
    many: Catalog, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(PluginError, match=f"the mask plugin 'many' refuses its options: {why}") as caught:
        many.build("mask", "many", options)
    assert "\n" not in str(caught.value)
    assert "; it takes must: int, whole: int = 1, real: float = 0.5, flag: bool = False, " in str(caught.value)


def test_what_is_given_is_no_option() -> None:
    with pytest.raises(PluginError, match=r"'width' is no option, mae-pipe gives it; it takes pool: "):
        Catalog().build("head", "linear", {"width": 3}, width=4, classes=2)


def test_a_plugin_without_options_says_so() -> None:
    with pytest.raises(PluginError, match="there is no option 'x'; it takes no options"):
        Catalog().build("mask", "random", {"x": 1})


def test_only_what_is_asked_for_is_passed(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(
        "from mae_pipe.api import Head, plugin\n"
        "class _Some(Head):\n"
        "    def forward(self, tokens): ...\n"
        "    def loss(self, output, labels): ...\n"
        "    def metrics(self, output, labels): ...\n"
        "@plugin('one')\nclass One(_Some):\n"
        "    def __init__(self, *, classes, sharp=1.0): super().__init__(); self.got = classes\n"
        "@plugin('all')\nclass All(_Some):\n"
        "    def __init__(self, **given): super().__init__(); self.got = given\n"
    )
    catalog = Catalog(files=(tmp_path / "two.py",))
    assert [str(option) for option in catalog.entries["head", "one"].options] == ["sharp = 1.0"]
    assert catalog.build("head", "one", {}, width=4, classes=2).got == 2
    assert catalog.build("head", "all", {"x": 1}, width=4, classes=2).got == {"width": 4, "classes": 2, "x": 1}


def test_options_are_listed_with_type_default_and_what_the_docstring_says(many: Catalog) -> None:
    options = {option.name: option for option in many.entries["mask", "many"].options}
    assert (options["must"].type, options["must"].default, options["must"].about) == ("int", None, "")
    assert options["pair"].type == "tuple[int, int]"
    assert options["pair"].default == "(1, 2)"
    assert options["whole"].about == options["real"].about == "whole patches, and a share of them, real, may be set"
    assert options["flag"].about == "whether."
    assert options["word"].about == options["where"].about == "a word and a place."
    assert options["free"].type == ""


@pytest.mark.parametrize(
    "doc",
    [
        "It is.\n\nArgs:\n    size: pixels\n        of a side.\n    other: x",
        "It is.\n\nArgs:\n    size (int): pixels of a side.",
        "It is.\n\nArgs:\n    other, size: pixels of a side.",
        "It is.\n\nParameters\n----------\nsize : int\n    pixels\n    of a side.\nother : int\n    x",
        "It is.\n\n:param size: pixels of a side.\n:param other: x",
        "It is.\n\n:param int size: pixels of a side.",
    ],
)
def test_an_argument_is_found_in_every_usual_style(doc: str) -> None:
    assert said_of("size", doc) == "pixels of a side."
    assert said_of("siz", doc) == ""


def test_an_argument_is_found_in_the_sentence_that_quotes_it() -> None:
    doc = "Hide it (Bao et al. 2022, as `a.size`).\n\nFirst. MAE has ``size = 2, x``; then\n``other``. Last."
    assert said_of("size", doc) == "MAE has size = 2, x; then other"
    assert said_of("other", doc) == "MAE has size = 2, x; then other"
    assert said_of("a", doc) == "Hide it (Bao et al. 2022, as a.size)"
    assert said_of("then", doc) == ""


INHERITED = {
    "__init__.py": '"""A package."""\nraise SystemExit("imported")',
    "base.py": "import torch\nfrom mae_pipe.api import MaskSampler\nraise SystemExit('imported')\n"
    "class Base(MaskSampler):\n"
    "    '''``a`` is said here.'''\n"
    "    def __init__(self, a: int = 1): ...\n",
    "child.py": "from mae_pipe.api import plugin\nfrom .base import Base as B\n"
    "class Between(B):\n    pass\n"
    "@plugin('child')\nclass Child(Between):\n    '''A child.'''\n",
    "fields.py": "from dataclasses import dataclass\nfrom mae_pipe.api import MaskSampler, plugin\n"
    "@plugin('fields')\n@dataclass\nclass Fields(MaskSampler):\n    '''Has ``height``.'''\n    height: int = 2\n",
}


@pytest.fixture
def inherited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """A package of a stranger's that ends the process that imports it."""
    package = tmp_path / "inherited_plugins"
    package.mkdir()
    for name, text in INHERITED.items():
        (package / name).write_text(text)
    info = tmp_path / "inherited-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: inherited\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[mae_pipe.plugins]\na = inherited_plugins.child\nb = inherited_plugins.fields\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return Catalog()


def test_what_is_inherited_is_read_from_source_too(inherited: Catalog) -> None:
    child, fields = inherited.entries["mask", "child"], inherited.entries["mask", "fields"]
    assert inherited.broken == {}
    assert "inherited_plugins" not in sys.modules
    assert (child.package, child.version, child.summary) == ("inherited", "1.2", "A child.")
    assert [str(option) for option in child.options] == ["a: int = 1"]
    assert child.options[0].about == "a is said here"
    assert [str(option) for option in fields.options] == ["height: int = 2"]


@pytest.mark.parametrize("name", ["block", "grid", "random"])
def test_source_and_class_tell_the_same_options(name: str) -> None:
    from mae_pipe.declared import of_signature

    catalog = Catalog()
    assert of_signature(catalog.find("mask", name), set()) == catalog.entries["mask", name].options
