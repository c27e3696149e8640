"""The public names: all that plugins, shard formats and scripts need.

Names are imported when first used, so that what needs no torch does not wait for it.

``VERSION`` is of these names and contracts: a plugin that was built for another first number is
refused, the second grows when something is added. A plugin package says ``MAE_PIPE_API = 1``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mae_pipe.catalog import Catalog as Catalog
    from mae_pipe.catalog import plugin as plugin
    from mae_pipe.contracts import Grid as Grid
    from mae_pipe.contracts import Head as Head
    from mae_pipe.contracts import MaskSampler as MaskSampler
    from mae_pipe.contracts import Target as Target
    from mae_pipe.contracts import View as View
    from mae_pipe.data.batch import Batch as Batch
    from mae_pipe.data.refusal import Refusal as Refusal
    from mae_pipe.data.sample import Origin as Origin
    from mae_pipe.data.sample import Pixels as Pixels
    from mae_pipe.data.sample import Placed as Placed
    from mae_pipe.data.sample import Sample as Sample
    from mae_pipe.data.sample import ShardFormat as ShardFormat
    from mae_pipe.data.sample import ShardReader as ShardReader
    from mae_pipe.data.sources import Asked as Asked
    from mae_pipe.data.sources import ImageSource as ImageSource
    from mae_pipe.data.sources import Item as Item
    from mae_pipe.data.sources import read_file as read_file
    from mae_pipe.data.sources import stamp_of as stamp_of
    from mae_pipe.erasing import erased as erased
    from mae_pipe.errors import DataError as DataError
    from mae_pipe.errors import MaePipeError as MaePipeError
    from mae_pipe.errors import PluginError as PluginError
    from mae_pipe.masking import Mask as Mask
    from mae_pipe.masking import gather as gather
    from mae_pipe.method import Method as Method
    from mae_pipe.method import Reconstruction as Reconstruction
    from mae_pipe.mixing import Mixer as Mixer
    from mae_pipe.momentum import MomentumCopy as MomentumCopy
    from mae_pipe.momentum import rising as rising
    from mae_pipe.patches import patchify as patchify
    from mae_pipe.patches import unpatchify as unpatchify
    from mae_pipe.precision import keep_float32 as keep_float32
    from mae_pipe.rng import Rng as Rng
    from mae_pipe.synced import SyncedBatchNorm as SyncedBatchNorm
    from mae_pipe.synced import of_all_ranks as of_all_ranks
    from mae_pipe.tables import Mixing as Mixing
    from mae_pipe.tasks import MaskedAutoencoder as MaskedAutoencoder
    from mae_pipe.teachers import Teacher as Teacher
    from mae_pipe.tokenizer.folder import Tokenizer as Tokenizer
    from mae_pipe.tokenizer.folder import load_tokenizer as load_tokenizer
    from mae_pipe.views import Crop as Crop

VERSION = (1, 0)

_HOME = {
    "Asked": "mae_pipe.data.sources",
    "Batch": "mae_pipe.data.batch",
    "Catalog": "mae_pipe.catalog",
    "Crop": "mae_pipe.views",
    "DataError": "mae_pipe.errors",
    "Grid": "mae_pipe.contracts",
    "Head": "mae_pipe.contracts",
    "ImageSource": "mae_pipe.data.sources",
    "Item": "mae_pipe.data.sources",
    "MaePipeError": "mae_pipe.errors",
    "Mask": "mae_pipe.masking",
    "MaskSampler": "mae_pipe.contracts",
    "MaskedAutoencoder": "mae_pipe.tasks",
    "Method": "mae_pipe.method",
    "Mixer": "mae_pipe.mixing",
    "Mixing": "mae_pipe.tables",
    "MomentumCopy": "mae_pipe.momentum",
    "Origin": "mae_pipe.data.sample",
    "Pixels": "mae_pipe.data.sample",
    "Placed": "mae_pipe.data.sample",
    "PluginError": "mae_pipe.errors",
    "Reconstruction": "mae_pipe.method",
    "Refusal": "mae_pipe.data.refusal",
    "Rng": "mae_pipe.rng",
    "Sample": "mae_pipe.data.sample",
    "ShardFormat": "mae_pipe.data.sample",
    "ShardReader": "mae_pipe.data.sample",
    "SyncedBatchNorm": "mae_pipe.synced",
    "Target": "mae_pipe.contracts",
    "Teacher": "mae_pipe.teachers",
    "Tokenizer": "mae_pipe.tokenizer.folder",
    "View": "mae_pipe.contracts",
    "erased": "mae_pipe.erasing",
    "gather": "mae_pipe.masking",
    "keep_float32": "mae_pipe.precision",
    "load_tokenizer": "mae_pipe.tokenizer.folder",
    "of_all_ranks": "mae_pipe.synced",
    "patchify": "mae_pipe.patches",
    "plugin": "mae_pipe.catalog",
    "read_file": "mae_pipe.data.sources",
    "rising": "mae_pipe.momentum",
    "stamp_of": "mae_pipe.data.sources",
    "unpatchify": "mae_pipe.patches",
}

__all__ = sorted(_HOME)  # noqa: PLE0605 (one list, not two)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mae_pipe.api' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
