"""Images a second of one pretraining step, ours against Hugging Face's, in one run.

ViT-B/16 at 224 pixels, ratio 0.75, random weights: forward and backward (with ``--optimizer``
also AdamW's step). Weights are bfloat16, as our engine keeps them, or as ``--precision`` says.
Rounds are interleaved and each gives one ratio, so that a machine that is busy with other
things slows all contestants alike; ``--cpu-time --threads 1`` is steadier still.

    python tools/bench_step.py --rounds 7
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import transformers
from timm.models.vision_transformer import Attention  # type: ignore[attr-defined]
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from mae_pipe.attention import choose_attention
from mae_pipe.catalog import Catalog
from mae_pipe.data.batch import Batch
from mae_pipe.recipe import Pretrain
from mae_pipe.tasks import Pretraining

SIZE = 224
Loss = Callable[[], Tensor]


class Contestant:
    """A model and its step; ``precision`` as in ``--precision``."""

    def __init__(self, name: str, model: nn.Module, loss: Loss, *, precision: str, optimizer: bool) -> None:
        self.name, self.model, self.loss = name, model, loss
        self.device = next(model.parameters()).device
        self.autocast = precision == "autocast"
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True) if optimizer else None
        self.rates: list[float] = []  # images a second, a round

    def step(self) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.optimizer is not None:
            self.optimizer.step()
        self.model.zero_grad(set_to_none=True)

    def measure(self, steps: int, images: int, clock: Callable[[], float]) -> None:
        _wait(self.device)
        begin = clock()
        for _ in range(steps):
            self.step()
        _wait(self.device)
        self.rates.append(images * steps / (clock() - begin))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def contestants(options: argparse.Namespace, pixels: Tensor, positions: Tensor) -> list[Contestant]:
    """Ours, Hugging Face's with both attentions; and on request ours with the other attention, or compiled."""
    made: list[Contestant] = []
    device = pixels.device

    def enter(name: str, model: nn.Module, loss: Loss) -> None:
        made.append(Contestant(name, model, loss, precision=options.precision, optimizer=options.optimizer))

    def ready(model: nn.Module) -> nn.Module:
        model.train().to(device)
        if options.precision == "autocast":
            choose_attention(model, torch.bfloat16)
        return model.bfloat16() if options.precision == "bf16" else model

    batch = Batch(pixels, positions, positions, positions)
    task = ready(Pretraining.from_recipe(Pretrain(), Catalog()))  # the defaults: ViT-B/16
    run = torch.compile(task) if options.compile else task
    enter("mae-pipe" + (", compiled" if options.compile else ""), task, lambda: run(batch))
    if options.all:
        other = ready(Pretraining.from_recipe(Pretrain(), Catalog()))
        for part in other.modules():
            if isinstance(part, Attention):
                part.fused_attn = not part.fused_attn  # type: ignore[misc]
        enter("mae-pipe, the other attention", other, lambda: other(batch))
    for attention in ("sdpa", "eager"):
        config = ViTMAEConfig(attn_implementation=attention)  # type: ignore[call-arg]
        theirs = ready(ViTMAEForPreTraining(config))
        images = torch.randn(pixels.shape, device=device).to(next(theirs.parameters()).dtype)
        enter(f"Hugging Face, {attention}", theirs, lambda m=theirs, i=images: m(pixel_values=i).loss)  # type: ignore[misc]
    return made


def spread(numbers: list[float]) -> str:
    """``min median max``."""
    return f"{min(numbers):8.2f} {statistics.median(numbers):8.2f} {max(numbers):8.2f}"


def processor() -> str:
    """The name of the machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="steps a round")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["bf16", "autocast", "fp32"], default="bf16")
    parser.add_argument("--optimizer", action="store_true", help="measure AdamW's step too")
    parser.add_argument("--compile", action="store_true", help="ours through torch.compile")
    parser.add_argument("--cpu-time", action="store_true", help="count this process's seconds; for a busy machine")
    parser.add_argument("--all", action="store_true", help="also ours with the attention that it did not choose")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    device = torch.device(options.device)
    pixels = torch.randint(0, 256, (options.batch, 3, SIZE, SIZE), dtype=torch.uint8, device=device)
    field = contestants(options, pixels, torch.arange(options.batch, device=device))
    for contestant in field:
        contestant.step()  # compilation and first allocations
    for number in range(options.rounds):
        gc.collect()
        shift = number % len(field)
        for contestant in field[shift:] + field[:shift]:  # nobody is always first
            contestant.measure(options.steps, options.batch, clock)

    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{processor()}, {options.threads} threads"
    print(
        f"{name}; torch {torch.__version__}, timm {timm.__version__}, transformers {transformers.__version__}; "
        f"ViT-B/16, {SIZE} px, batch {options.batch}, {options.precision}, forward + backward"
        f"{' + AdamW' if options.optimizer else ''}; {options.rounds} rounds of {options.steps} steps, interleaved"
    )
    unit = "images/s of CPU time" if options.cpu_time else "images/s"
    print(f"{unit:34}{'min':>8} {'median':>8} {'max':>8}")
    for contestant in field:
        print(f"{contestant.name:34}{spread(contestant.rates)}")
    rivals = [contestant for contestant in field if contestant.name.startswith("Hugging Face")]
    best = max(rivals, key=lambda c: statistics.median(c.rates))
    ratios = [a / b for a, b in zip(field[0].rates, best.rates, strict=True)]
    print(f"{'ratio to ' + best.name:34}{spread(ratios)}")
    return 0 if statistics.median(ratios) > 1 else 1


if __name__ == "__main__":
    sys.exit(main())
