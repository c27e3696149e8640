"""Pages in docs/reproduced: whole, of the tables as they are now, and with the numbers that the docs repeat."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from mae_pipe.reproducing import published
from mae_pipe.reproducing.ranks import spearman

DOCS = Path(__file__).parents[1] / "docs"
FILES = sorted((DOCS / "reproduced").glob("*.json"))


def values_of(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_there_are_some() -> None:
    assert FILES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_page_is_whole_and_of_its_table(file: Path) -> None:
    values = values_of(file)
    table = published.table(values["table"])
    assert file.stem.partition("-")[2] == values["scale"]
    assert values["missing"] == []
    assert [row["label"] for row in values["rows"]] == [row.label for row in table.at(values["scale"])]
    for row, wanted in zip(values["rows"], table.at(values["scale"]), strict=True):
        for measure in table.measures:
            assert row[measure]["paper"] == wanted.paper(measure)
            if row[measure]["seeds"]:
                assert len(row[measure]["seeds"]) == values["seeds"]
                assert row[measure]["mean"] == pytest.approx(statistics.mean(row[measure]["seeds"]))
    for measure, value in values["rank_correlation"].items():
        both = [(row[measure]["mean"], row[measure]["paper"]) for row in values["rows"]]
        kept = [pair for pair in both if None not in pair]
        assert value == pytest.approx(spearman([a for a, _ in kept], [b for _, b in kept]))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_all_forms_and_the_docs_say_the_same_numbers(file: Path) -> None:
    docs = (page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("*.md")))
    told = "".join(text for text in docs if f"reproduced/{file.stem}.md" in text)
    assert told
    forms = [file.with_suffix(ending).read_text(encoding="utf-8") for ending in (".html", ".md")]
    for row in values_of(file)["rows"]:
        for measure in ("finetuned", "linear"):
            if row.get(measure, {}).get("seeds"):
                text = f"{row[measure]['mean']:.1f} ± {row[measure]['deviation']:.1f}"
                assert all(text in page for page in [*forms, told]), (row["label"], text)
