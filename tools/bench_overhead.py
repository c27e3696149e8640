"""What masks and targets cost in a pretraining step: the share of ViT-B/16's step, for everything installed.

A sampler's share is its scores and the mask made of them; a target's is the truth at hidden patches and
the loss with its gradient. Each is timed alone, the step with the cheapest of both; rounds are interleaved.

    python tools/bench_overhead.py --rounds 5
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from mae_pipe.attention import choose_attention
from mae_pipe.catalog import Catalog
from mae_pipe.contracts import MaskSampler, Target
from mae_pipe.data.batch import Batch
from mae_pipe.errors import PluginError
from mae_pipe.masking import Mask
from mae_pipe.recipe import Pretrain, TargetChoice
from mae_pipe.rng import Rng
from mae_pipe.tasks import MaskedAutoencoder, view_of

SIZE, RATIO = 224, 0.75
Work = Callable[[], object]


def sampler_work(sampler: MaskSampler, images: Tensor, task: MaskedAutoencoder) -> Work:
    positions = torch.arange(len(images), device=images.device)
    return lambda: Mask.from_scores(sampler.scores(images, task.grid, Rng(7, positions)), RATIO)


def target_work(target: Target, images: Tensor, mask: Mask) -> Work:
    shape = len(images), mask.hidden.shape[1], target.width
    prediction = torch.randn(shape, device=images.device, requires_grad=True)

    def work() -> None:
        with torch.no_grad():
            truth = target.truth(images)
        target.loss(prediction, mask.hidden_of(truth)).mean().backward()  # type: ignore[no-untyped-call]
        prediction.grad = None

    return work


def timed(work: Work, repeats: int, device: torch.device) -> float:
    """Seconds of one call, the mean of ``repeats``."""
    wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - began) / repeats


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU; default: its own choice")
    parser.add_argument("--tokenizer", default="", metavar="FOLDER", help="also the target dvae, with this tokenizer")
    parser.add_argument("--teacher", default="", metavar="NAME", help="also the target feature, with this timm model")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    catalog = Catalog()
    recipe = Pretrain(target=TargetChoice(name="pixel"))
    task = MaskedAutoencoder.from_recipe(recipe, catalog).to(device, torch.bfloat16).train()
    choose_attention(task)
    pixels = torch.randint(0, 256, (options.batch, 3, SIZE, SIZE), dtype=torch.uint8, device=device)
    numbers = torch.arange(options.batch, device=device)
    batch = Batch(pixels, numbers, numbers, numbers)
    images = torch.randn(options.batch, 3, SIZE, SIZE, device=device)
    mask = Mask.from_scores(torch.rand(options.batch, task.grid.size, device=device), RATIO)
    view = view_of(recipe.data, recipe.encoder)

    def step() -> None:
        task(batch).backward()
        task.zero_grad(set_to_none=True)

    needs = {}  # options of the targets that are networks themselves
    if options.tokenizer:
        needs["dvae"] = {"tokenizer": options.tokenizer}
    if options.teacher:
        needs["feature"] = {"teacher": options.teacher, "weights": "none"}
    works: dict[str, Work] = {}
    for name in catalog.names("mask"):
        works[f"mask {name}"] = sampler_work(catalog.build("mask", name, {}), images, task)
    for name in catalog.names("target"):
        try:
            target: Target = catalog.build("target", name, needs.get(name, {}), view=view).to(device)
        except PluginError as error:  # it needs a file: a tokenizer, a teacher
            print(f"left out: {error}")
            continue
        if target.fit_images:
            with torch.no_grad():
                target.fit(iter([images]))
        works[f"target {name}"] = target_work(target, images, mask)

    step()
    shares: dict[str, list[float]] = {name: [] for name in works}
    steps = []
    for _ in range(options.rounds):
        whole = timed(step, 2, device)
        steps.append(whole)
        for name, work in works.items():
            work()
            shares[name].append(100 * timed(work, 10, device) / whole)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"ViT-B/16, {SIZE} pixels, batch {options.batch}, bf16, {machine}, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads, {options.rounds} rounds")  # fmt: skip
    print(f"a step: {min(steps):.3f} / {statistics.median(steps):.3f} / {max(steps):.3f} s (min / median / max)")
    for name, found in shares.items():
        print(f"{name:28} {min(found):6.2f} / {statistics.median(found):6.2f} / {max(found):6.2f} % of a step")


if __name__ == "__main__":
    main()
