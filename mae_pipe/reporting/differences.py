"""In what runs differ: of many flattened values only those that are not the same in all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mae_pipe.outcome import Row, sameness
from mae_pipe.reporting.gathered import Run
from mae_pipe.toml import flat

LONG = 200  # letters of a value; more are left out
UNTOLD = {"command", "created", "features", "gone_on", "main", "order", "provenance", "task"}  # of run.json
NAMED = 3  # runs in the heading of a column that many share


@dataclass(frozen=True)
class Differences:
    """A column a run.

    Attributes:
        rows: of keys that differ, (key, a cell a column); None: the key is not there.
        equal: (key, value) of all others.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str | None, ...]], ...]
    equal: tuple[tuple[str, str], ...]


def differences(title: str, columns: Mapping[str, Row]) -> Differences:
    """Compare flat values by column name; keys stand in the order in which they first come."""
    keys = dict.fromkeys(key for values in columns.values() for key in values)
    cells = {key: tuple(shown(values[key]) if key in values else None for values in columns.values()) for key in keys}
    return Differences(
        title,
        tuple(columns),
        tuple((key, row) for key, row in cells.items() if len({*row}) > 1),
        tuple((key, str(row[0])) for key, row in cells.items() if len({*row}) == 1),
    )


def of_recipes(runs: Sequence[Run]) -> list[Differences]:
    """Of the recipes of pretraining, of probes and of finetunings, each where there are several."""
    columns: dict[str, dict[str, Row]] = {"pretrain": {r.name: told(r.recipe) for r in runs if r.task == "pretrain"}}
    shared: dict[str, tuple[Row, list[str]]] = {}
    for run in runs:
        own = [(run.recipe, run.name)] if run.task != "pretrain" else []
        below = [(result.recipe, f"{run.name}/{result.folder}") for result in run.results if run.folder != result.path]
        for recipe, name in (*own, *below):
            shared.setdefault(sameness(recipe, {}), (recipe, []))[1].append(name)
    for recipe, names in shared.values():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        values = {key: value for key, value in told(recipe).items() if key != "seed" or len(names) == 1}
        columns.setdefault(str(recipe.get("task")), {})[", ".join(names[:NAMED]) + more] = values
    titles = {"pretrain": "Pretraining", "probe": "Probes", "finetune": "Finetuning"}
    return [differences(title, columns[task]) for task, title in titles.items() if len(columns.get(task, ())) > 1]


def of_environments(runs: Sequence[Run]) -> Differences:
    """Of what run.json says: versions, machine, processes, plugins, data."""
    return differences("Environment", {run.name: environment(run.about) for run in runs})


def environment(about: Row) -> Row:
    """run.json, flat, with a line a plugin."""
    values = {key: value for key, value in about.items() if key not in UNTOLD and key != "plugins"}
    plugins = {
        f"plugins.{one.get('kind')}": " ".join(str(one.get(key, "")) for key in ("name", "package", "version"))
        + f" {str(one.get('sha256', ''))[:12]}"
        for one in about.get("plugins", ())
        if isinstance(one, dict)
    }
    return flat(values) | plugins


def shown(value: Any) -> str:
    """A value of a recipe or of run.json as it stands on a page."""
    if value in (None, [], {}):
        return "none"
    if isinstance(value, list):
        text = ", ".join(map(shown, value))
    elif value == "":
        return '""'
    else:
        text = f"{value:.10g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONG else f"{text[:LONG]}..."


def told(recipe: Row) -> Row:
    """A recipe, flat, without what only names it, and without tables that are empty."""
    return {key: value for key, value in flat(recipe).items() if key not in ("task", "about") and value != {}}
