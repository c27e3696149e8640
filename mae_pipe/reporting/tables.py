"""Tables that a reader can sort; they stand sorted already where there are no scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mae_pipe.charts import Look
from mae_pipe.outcome import Repeated


@dataclass(frozen=True)
class Column:
    """``key`` names it in the page's address: ``#sort=TABLE.KEY``."""

    key: str
    heading: str
    number: bool = True
    beside: str = ""  # smaller, under the heading


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and what it sorts by: ``value``, or else its text."""

    text: str = ""
    value: float | None = None
    beside: str = ""  # quiet, after the text
    look: Look | None = None  # of a curve: stands before the text
    bar: float | None = None  # in [0, 1]: a bar in place of a text
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """``order`` is the key of the column by which the rows stand sorted; empty: as given."""

    key: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    order: str = ""
    descending: bool = False


def trimmed(table: Table) -> Table:
    """Without columns in which no row has anything."""
    full = [
        number
        for number in range(len(table.columns))
        if any(row[number].text or row[number].bar is not None for row in table.rows)
    ]
    return Table(
        table.key,
        tuple(table.columns[number] for number in full),
        tuple(tuple(row[number] for number in full) for row in table.rows),
        table.order,
        table.descending,
    )


def of_results(rows: Sequence[tuple[Cell, Repeated]]) -> Table:
    """Probes and finetunings, a row for those that differ in their seed only; the first cell says whose they are."""
    best = max((group.score for _, group in rows), default=1.0) or 1.0
    metrics = {group.first.metric: None for _, group in rows}
    columns = (
        Column("run", "run", number=False),
        Column("what", "what", number=False),
        Column("folder", "folder", number=False),
        Column("score", " or ".join(metrics)),
        Column("bar", "", number=False),
        Column("seeds", "of each seed"),
        Column("top5", "top-5"),
        Column("epochs", "epochs"),
        Column("labels", "labels a class"),
        Column("images", "evaluated images"),
    )
    few = any(group.first.labels_per_class for _, group in rows)
    cells = []
    for whose, group in rows:
        one = group.first
        top5 = [result.top5 for result in group.results if result.top5 is not None]
        epochs = one.recipe.get("schedule", {}).get("epochs") if one.curve[-1][0] else None
        cells.append(
            (
                whose,
                Cell(one.name[:1].upper() + one.name[1:]),
                Cell(group.folders),
                Cell(f"{100 * group.score:.1f} %", group.score, beside=spread(group), strong=True),
                Cell(value=group.score, bar=group.score / best if best > 1 else group.score, strong=one.pretrained),
                Cell(", ".join(f"{100 * each.score:.1f}" for each in group.results) if len(group.results) > 1 else ""),
                Cell(f"{100 * sum(top5) / len(top5):.1f} %", sum(top5) / len(top5)) if top5 else Cell(),
                Cell(f"{epochs:g}", epochs) if epochs else Cell(),
                _labels(one.labels_per_class, few=few),
                Cell(f"{one.images:,}" if one.images else "", one.images or None, beside=one.split),
            )
        )
    return trimmed(Table("results", columns, tuple(cells)))


def _labels(labels: int | None, *, few: bool) -> Cell:
    """``few``: some rows have few, so that it is worth saying that this one has all."""
    return Cell(f"{labels:,}", labels) if labels else Cell("all" if few else "")


def spread(group: Repeated) -> str:
    """What stands after a score: the standard deviation over seeds, or else what the images leave."""
    if group.deviation is not None:
        return f"± {100 * group.deviation:.1f}"
    return f"± {100 * group.margin:.1f}" if group.first.images and group.first.is_share else ""
