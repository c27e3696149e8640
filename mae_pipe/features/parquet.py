"""Features as Parquet, for other programs to read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from torch import Tensor

from mae_pipe.disk import writing_whole
from mae_pipe.errors import DataError, RecipeError
from mae_pipe.features.identity import Identity


def check_parquet(identity: Identity) -> None:
    """Refuse what the columns have no room for, and a machine without pyarrow."""
    if identity.kind == "tokens":
        raise RecipeError("parquet holds one vector an image, not all tokens; take --format safetensors")
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise DataError("parquet wants pyarrow; install it with: pip install 'mae-pipe[parquet]'") from error


def write_parquet(path: Path, keys: list[str], labels: Tensor, features: Tensor, identity: Identity) -> None:
    """A row an image, or one for each view of it: key, label, view (where there are several), feature.

    Args:
        features: [n, D] or [n, K, D].
    """
    import pyarrow as pa
    from pyarrow import parquet

    views = identity.views
    times = max(1, views)
    flat = features.reshape(len(keys) * times, -1).numpy()
    width = flat.shape[1]
    ends = pa.array(np.arange(0, flat.size + 1, width, dtype=np.int32))
    columns = {
        "key": pa.array(np.repeat(np.array(keys, dtype=object), times), pa.string()),
        "label": _labels(labels, times),
        **({"view": pa.array(np.tile(np.arange(times, dtype=np.int32), len(keys)))} if views else {}),
        "feature": pa.ListArray.from_arrays(ends, pa.array(flat.reshape(-1))),
    }
    table = pa.table(columns).replace_schema_metadata({"classes": json.dumps(identity.classes)})
    with writing_whole(path) as file:
        parquet.write_table(table, file)


def _labels(labels: Tensor, times: int) -> object:
    """A class number an image, null where there is none; or a list of them."""
    import pyarrow as pa

    if labels.dim() == 2:
        lists = [row.nonzero()[:, 0].tolist() for row in labels for _ in range(times)]
        return pa.array(lists, pa.list_(pa.int32()))
    numbers = np.repeat(labels.numpy().astype(np.int32), times)
    return pa.array(numbers, mask=numbers < 0)
