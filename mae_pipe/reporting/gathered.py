"""The runs that a page compares: what each folder says, under a name of its own, with its downstream runs beside it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from mae_pipe.errors import RunError
from mae_pipe.outcome import Result, Row, finite, journal, order, read_object, result_of, results, sameness


@dataclass(frozen=True)
class Run:
    """A run folder, read.

    Attributes:
        origin: the pretraining run's recipe and run.json: its own, or of a downstream run that which it began from.
        results: of a pretraining run its probes and finetunings, of a downstream run its own.
    """

    folder: Path
    name: str
    recipe: Row
    about: Row
    origin: tuple[Row, Row]
    rows: dict[str, list[Row]]
    results: tuple[Result, ...]

    @property
    def task(self) -> str:
        """``pretrain``, ``probe`` or ``finetune``."""
        return str(self.recipe.get("task", "pretrain"))

    @property
    def train(self) -> list[Row]:
        """Rows of kind ``train``."""
        return self.rows.get("train", [])

    @cached_property
    def sameness(self) -> str:
        """Equal for runs that differ in their seed only."""
        return sameness(self.recipe, self.about) + (sameness(*self.origin) if self.task != "pretrain" else "")

    @property
    def used(self) -> dict[str, str]:
        """Kind -> name of the method of its pretraining, and of mask and target where it has them; empty: not known."""
        recipe, about = self.origin
        if not recipe:
            return {}
        kinds = {one.get("kind") for one in about.get("plugins", ()) if isinstance(one, dict)}
        return {"method": recipe.get("method", {}).get("name", "mae")} | {
            kind: recipe[kind]["name"]
            for kind in ("mask", "target")
            if kind in kinds and "name" in recipe.get(kind, {})
        }

    @property
    def method(self) -> str:
        """For a person: the method, and the target where it has one."""
        return ", ".join(self.used[kind] for kind in ("method", "target") if kind in self.used)

    @property
    def encoder(self) -> tuple[str, float | None]:
        """For a person, and a number to sort by."""
        shape = self.origin[0].get("encoder", {})
        if not {"width", "depth", "patch"} <= set(shape):
            return "", None
        patch = shape["patch"] if not isinstance(shape["patch"], list) else "x".join(map(str, shape["patch"]))
        return f"{shape['width']} x {shape['depth']}, patch {patch}", shape["width"] ** 2 * shape["depth"]

    def last(self, name: str, kind: str = "train") -> float | None:
        """The newest finite value."""
        return next((row[name] for row in reversed(self.rows.get(kind, [])) if finite(row.get(name))), None)

    def median(self, name: str) -> float | None:
        """The median of a number over the run."""
        values = [row[name] for row in self.train if finite(row.get(name))]
        return statistics.median_high(values) if values else None

    def series(self, name: str, kind: str = "train") -> tuple[list[float], list[float]]:
        """(epochs, values) of a number, where it is finite."""
        rows = [row for row in self.rows.get(kind, []) if finite(row.get(name))]
        return [row.get("epoch", row["step"] / self.steps_per_epoch) for row in rows], [row[name] for row in rows]

    @property
    def steps_per_epoch(self) -> float:
        """As the journal has it; 1 where it says no epochs."""
        last = next((row for row in reversed(self.train) if finite(row.get("epoch")) and row["epoch"]), None)
        return last["step"] / last["epoch"] if last else 1.0


def gather(folders: Sequence[Path]) -> list[Run]:
    """Read run folders; one that is given twice counts once, and a downstream run stands with its pretraining run.

    Raises:
        RunError: a folder is no run folder, or there is none.
    """
    if not folders:
        raise RunError("there is no run to report; give at least one run folder")
    given = {folder.resolve(): folder for folder in reversed(folders)}
    places = list(dict.fromkeys(folder.resolve() for folder in folders))
    names = _names(places)
    runs = {place: _read(given[place], name) for place, name in zip(places, names, strict=True)}
    alone: list[Run] = []
    for place, run in runs.items():
        home = Path(str(run.about.get("pretrained", ""))).resolve() if run.task != "pretrain" else place
        host = runs.get(home, runs.get(place.parent)) if home != place else None
        if host is None or not run.results or host.task != "pretrain":
            alone.append(run)
        elif not any(result.path.resolve() == place for result in host.results):
            runs[host.folder.resolve()] = replace(host, results=(*host.results, *run.results))
    return [replace(run, results=tuple(order(runs[run.folder.resolve()].results))) for run in alone]


def seeds(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in their seed only, together; in the order of their firsts."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.sameness, []).append(run)
    return list(groups.values())


def _read(folder: Path, name: str) -> Run:
    recipe, about, rows = read_object(folder / "recipe.json"), read_object(folder / "run.json"), journal(folder)
    if not (recipe or about or rows):
        raise RunError(f"{folder} is not a run folder; give the folder that mae-pipe pretrain wrote with --out")
    if recipe.get("task", "pretrain") == "pretrain":
        return Run(folder, name, recipe, about, (recipe, about), rows, tuple(results(folder)))
    begun = Path(str(about.get("pretrained", folder.parent)))
    origin = begun if (begun / "recipe.json").is_file() else folder.parent  # a run that was moved with what is in it
    found = result_of(folder)
    shape = read_object(origin / "recipe.json"), read_object(origin / "run.json")
    return Run(folder, name, recipe, about, shape, rows, (found,) if found else ())


def _names(places: Sequence[Path]) -> list[str]:
    """The end of each path, as long as it takes to tell them apart; and what it lies in, if that is a run."""
    within = [(place.parent / "run.json").is_file() for place in places]
    names = [str(Path(*place.parts[-2:])) if inner else place.name for place, inner in zip(places, within, strict=True)]
    length = 1
    while len({*names}) < len(names):
        length += 1
        names = [
            str(Path(*place.parts[-length:])) if names.count(name) > 1 else name
            for place, name in zip(places, names, strict=True)
        ]
    return names
