"""Every installed plugin passes the whole conformance suite."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mae_pipe import testing
from mae_pipe.catalog import Catalog
from mae_pipe.tables import TokenizerShape
from mae_pipe.testing.zero3 import Asked, failures
from mae_pipe.tokenizer.folder import About, save_tokenizer
from mae_pipe.tokenizer.network import DiscreteVae

Options = dict[tuple[str, str], dict[str, Any]]
CATALOG = Catalog()
KINDS = {"mask", "target", "head", "method", "shards", "source"}
PLUGINS = sorted(plugin for plugin in CATALOG.entries if plugin[0] in KINDS)
TRAINED = [
    (kind, name)
    for kind, name in PLUGINS
    if kind not in ("shards", "source") and not (kind == "method" and CATALOG.find(kind, name).follows)
]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Of the plugins that want something of the user's."""
    folder, shape = tmp_path_factory.mktemp("tokenizer"), TokenizerShape(codebook=16, width=4, downsampling=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = DiscreteVae(shape).state_dict()
    save_tokenizer(folder, About(layout="mae-pipe", codebook=16, downsampling=4, shape=shape), weights)
    return {
        ("target", "dvae"): {"tokenizer": str(folder)},
        ("method", "dino"): {"out": 64, "hidden": 32, "bottleneck": 16, "local_crops": 2, "local_size": 16},
        ("target", "feature"): {"teacher": "test_vit", "weights": "none"},
    }


@pytest.mark.parametrize(
    ("kind", "name", "check"),
    [(kind, name, check) for kind, name in PLUGINS for check in testing.checks(kind, fast=True)],
)
def test_every_installed_plugin_conforms(kind: str, name: str, check: str, options: Options) -> None:
    if name == "ffcv":
        pytest.importorskip("ffcv", reason="ffcv is not installed")
    result = testing.run_check(kind, name, check, catalog=CATALOG, options=options.get((kind, name)))
    if result.outcome == "skipped":
        pytest.skip(result.detail)
    assert result.outcome == "passed", result.detail


@pytest.mark.slow
def test_every_installed_plugin_trains_under_zero_3(options: Options) -> None:
    asked = [Asked(kind, name, options.get((kind, name), {})) for kind, name in TRAINED]
    said = {f"{one.kind} {one.name}": why for one, why in zip(asked, failures(asked), strict=True)}
    assert {name: why for name, why in said.items() if why} == {}


def test_nothing_that_is_installed_is_left_out() -> None:
    assert {kind for kind, _ in PLUGINS} == KINDS
    assert len(PLUGINS) == len(CATALOG.entries)
