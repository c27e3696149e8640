"""A recipe's method, built: with first weights that its seed alone decides."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from mae_pipe.autoencoder import Decoder, build_encoder
from mae_pipe.catalog import Catalog
from mae_pipe.errors import RecipeError
from mae_pipe.method import Method
from mae_pipe.recipe import Pretrain
from mae_pipe.seeding import key
from mae_pipe.tasks import view_of

CLASSES = 1000  # where no shards say it: ImageNet-1k's
TABLES = {"mask": {"sampler", "ratio"}, "target": {"target"}, "decoder": {"decoder"}}  # what is made of each


def build(recipe: Pretrain, catalog: Catalog, *, classes: int = CLASSES) -> Method:
    """The method that the recipe names, on a device and in a precision that are to be chosen later.

    Args:
        classes: of the labels, for methods that learn from them.

    Raises:
        RecipeError: a table was set that this method does not use.
    """
    name = recipe.method.name
    asked = asked_by(recipe, catalog)
    _check_tables(recipe, asked)
    view = view_of(recipe.data, recipe.encoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(recipe.seed, "weights") % 2**63)
        given: dict[str, Any] = {"view": view, "classes": classes, "epochs": recipe.schedule.epochs}
        given |= {"ratio": recipe.mask.ratio, "everywhere": recipe.target.loss_on == "all"}

        def offer(what: str, make: Callable[[], Any]) -> None:
            if what in asked:
                given[what] = make()

        offer("sampler", lambda: catalog.build("mask", recipe.mask.name, recipe.mask.options))
        offer("target", lambda: catalog.build("target", recipe.target.name, recipe.target.options, view=view))
        offer("encoder", lambda: build_encoder(recipe.encoder, recipe.data.sides, channels=view.channels))
        offer("decoder", lambda: _decoder(recipe, given))
        method: Method = catalog.build("method", name, recipe.method.options, **given)
    return method.bind(view=view, seed=recipe.seed)


def asked_by(recipe: Pretrain, catalog: Catalog) -> set[str]:
    """The names of what the recipe's method wants to be built with."""
    return set(inspect.signature(catalog.find("method", recipe.method.name)).parameters)


def _decoder(recipe: Pretrain, given: dict[str, Any]) -> Decoder:
    return Decoder(
        recipe.decoder,
        width=recipe.encoder.width,
        out=given["target"].width,
        grid=given["view"].grid,
        class_tokens=recipe.encoder.class_tokens,
        mask_tokens=not recipe.encoder.mask_tokens,
    )


def _check_tables(recipe: Pretrain, asked: set[str]) -> None:
    """Refuse what would be set and not used."""
    for table, made in TABLES.items():
        default = Pretrain.model_fields[table].default
        if not made & asked and getattr(recipe, table) != default:
            raise RecipeError(f"the method {recipe.method.name!r} has no use for [{table}]; leave that table out")
