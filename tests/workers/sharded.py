"""First weights and memory of a model that no process holds whole, beside those of one that it does.

python sharded.py OUT '{"encoder": {...}, "engine": {...}, "weights": true}'    forked in ranks, or alone
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from mae_pipe import launch, recipe
from mae_pipe.catalog import Catalog
from mae_pipe.engine import Engine
from mae_pipe.tasks import MaskedAutoencoder
from tests.workers import stages


def main() -> None:
    out, wanted = Path(sys.argv[1]), json.loads(sys.argv[2])
    values = stages.chosen({"zero": 3, **wanted["engine"]}).model_dump(mode="json")
    for table in ("encoder", "decoder"):
        values[table].update(wanted.get(table, {}))
    mae = recipe.parse(values, "mine")
    assert isinstance(mae, recipe.Pretrain)
    here = launch.join()
    task = stages.task_of(mae)
    engine = Engine(task, stages.groups_of(task), mae, micro_batch=stages.MICRO)
    found: dict[str, Any] = {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if wanted["weights"]:
        import deepspeed

        usual = dict(MaskedAutoencoder.from_recipe(mae, Catalog()).named_parameters())
        same = {}
        for name, parameter in engine.task.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter]):
                same[name] = torch.equal(parameter.cpu(), usual[name].to(parameter.dtype))
        found |= {"same": same, "names": sorted(usual)}
    Path(f"{out}.{here.rank}").write_text(json.dumps(found))
    engine.close()


if __name__ == "__main__":
    main()
