"""Every installed plugin passes the whole conformance suite."""

from __future__ import annotations

from typing import Any

import pytest

from mae_pipe import testing
from mae_pipe.catalog import Catalog
from mae_pipe.testing.zero3 import Asked, failures

CATALOG = Catalog()
OPTIONS: dict[tuple[str, str], dict[str, Any]] = {  # of those that want something of the user's
    ("target", "feature"): {"teacher": "vit_tiny_patch16_224", "weights": "none"},
}
PLUGINS = sorted(plugin for plugin in CATALOG.entries if plugin[0] in ("mask", "target", "head", "shards"))
TRAINED = [plugin for plugin in PLUGINS if plugin[0] != "shards"]


@pytest.mark.parametrize(
    ("kind", "name", "check"),
    [(kind, name, check) for kind, name in PLUGINS for check in testing.checks(kind, fast=True)],
)
def test_every_installed_plugin_conforms(kind: str, name: str, check: str) -> None:
    if name == "ffcv":
        pytest.importorskip("ffcv", reason="ffcv is not installed")
    result = testing.run_check(kind, name, check, catalog=CATALOG, options=OPTIONS.get((kind, name)))
    if result.outcome == "skipped":
        pytest.skip(result.detail)
    assert result.outcome == "passed", result.detail


@pytest.mark.slow
def test_every_installed_plugin_trains_under_zero_3() -> None:
    asked = [Asked(kind, name, OPTIONS.get((kind, name), {})) for kind, name in TRAINED]
    said = {f"{one.kind} {one.name}": why for one, why in zip(asked, failures(asked), strict=True)}
    assert {name: why for name, why in said.items() if why} == {}


def test_nothing_that_is_installed_is_left_out() -> None:
    assert {kind for kind, _ in PLUGINS} == {"mask", "target", "head", "shards"}
    assert len(PLUGINS) == len(CATALOG.entries)
