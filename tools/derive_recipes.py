"""Write the recipe files that differ from another in a few lines: `python -m tools.derive_recipes`.

A recipe is complete in itself, so a family of them repeats most lines. One file of each family is written by hand; the
others are that file with another head and other lines, named in ``recipe_families.py`` and beside it. After an original
changed, run this.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from tools import recipe_families, recipe_heads, recipe_small
from tools.recipe_families import Derived

RECIPES = Path(__file__).parent.parent / "mae_pipe" / "recipes"
FAMILIES = (
    recipe_families.pretraining,
    recipe_families.finetuning,
    recipe_heads.probing,
    recipe_heads.partial,
    recipe_heads.scratch,
    recipe_small.small,
)


def derive(original: str, one: Derived) -> str:
    """The text of ``one``: ``original`` with its head and lines.

    Raises:
        KeyError: the original has no such line.
    """
    lines = dict(one.lines)
    body, table = [], ""
    for line in original[original.index("\n\n") + 1 :].splitlines():
        key, equals, _ = line.partition(" = ")
        if line.startswith("["):
            table = line[1 : line.index("]")]
            body.append(f"[{table}]  # {lines.pop(table)}" if table in lines else line)
        elif equals and (name := f"{table}.{key}".lstrip(".")) in lines:
            body.append(f"{key} = {lines.pop(name)}")
        else:
            body.append(line)
    if lines:
        raise KeyError(f"{one.name}: {one.original} has no line {', '.join(lines)}")
    head = [f"# {line}" for line in one.head.strip().splitlines()]
    return "\n".join([*head, *body]) + "\n"


def files() -> Iterator[tuple[Path, str]]:
    """(file, what it should hold) of every derived recipe; an original may be a derived one that comes before it."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in RECIPES.rglob("*.toml")}
    for one in chain.from_iterable(family() for family in FAMILIES):
        texts[one.name] = derive(texts[one.original], one)
        yield RECIPES / one.family / f"{one.name}.toml", texts[one.name]


if __name__ == "__main__":
    for path, text in files():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(RECIPES))
