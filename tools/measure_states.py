"""Bytes of tensors that an engine holds on this CPU, at every ZeRO stage: what `mae-pipe plan` reckons, measured.

Every tensor's memory is counted from when an operation makes it until it is freed, gradients and saved
activations too; what an operation takes inside itself is not seen. Under torchrun each process counts its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource

import torch

from mae_pipe import launch, recipe
from mae_pipe.catalog import Catalog
from mae_pipe.data.batch import Batch
from mae_pipe.engine import Engine
from mae_pipe.optim import Plan, parameter_groups
from mae_pipe.planning.counting import Counted
from mae_pipe.tasks import MaskedAutoencoder


def batch_of(images: int, data: recipe.Data) -> Batch:
    pixels = torch.randint(0, 256, (images, data.channels, data.height, data.width), dtype=torch.uint8)
    numbers = torch.arange(images)
    return Batch(pixels, torch.full((images,), -1), numbers, numbers)


def measured(chosen: recipe.Pretrain) -> dict[str, int]:
    """Bytes on this rank: between steps, and the most in each part of a step."""
    here = launch.join()
    plan = Plan.of(chosen, 1000, here.world)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Counted(shapes=False) as held:
        task = MaskedAutoencoder.from_recipe(chosen, Catalog())
        for tensor in [*task.parameters(), *task.buffers()]:
            held.add(tensor)
        held.mark()
        found = {"model": held.now}
        groups = parameter_groups(task.named_parameters(), weight_decay=0.05)
        engine = Engine(task, groups, chosen, micro_batch=plan.micro_batch)
        gc.collect()
        found |= {"begin": held.now, "building": held.mark()}
        batch = batch_of(plan.micro_batch, chosen.data)
        engine.train()
        for _ in range(2):
            held.sent.clear()
            for _ in range(plan.accumulation):
                loss = engine(batch)
                found |= {"forward": held.mark()}
                engine.backward(loss / plan.accumulation)
                del loss
                found |= {"after backward": held.now, "backward": held.mark()}
            engine.step(1e-4)
            found |= {"step": held.mark(), "between": held.now}
        gc.collect()
        found |= {"between": held.now} | {f"sent by {name}": size for name, size in held.sent.items()}
        state = engine.held()
        found["saved"] = sum(t.numel() * t.element_size() for t in state.pieces.values())
    found["resident before"] = before * 1024
    found["resident most"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    engine.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("--set", dest="changes", action="append", default=[])
    arguments = parser.parse_args()
    chosen = recipe.load(arguments.recipe, arguments.changes, task="pretrain")
    assert isinstance(chosen, recipe.Pretrain)
    found = measured(chosen)
    if launch.place().rank == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
