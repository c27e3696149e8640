"""Whether a device computes what it should: each check has a name, a figure and the most that it may be.

    python -m tools.gpu_correct --device cuda --json correct.json
    python -m tools.gpu_correct --device cpu --only masks official

On a CPU the same checks run, where a comparison of the device with the CPU says little. The official code's losses are
those that ``tests/test_parity.py`` compares with; ZeRO's model is that of ``tests/test_engine.py``. No data is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mae_pipe import recipe
from mae_pipe.attention import attend, choose_attention
from mae_pipe.catalog import Catalog
from mae_pipe.contracts import Grid
from mae_pipe.data.batch import Batch
from mae_pipe.engine import Engine
from mae_pipe.errors import Stopped
from mae_pipe.masking import Mask
from mae_pipe.optim import parameter_groups
from mae_pipe.rng import Rng
from mae_pipe.tasks import MaskedAutoencoder
from tests import by_hand, test_engine, test_parity
from tests.workers import pretrain_and_die, stages

Figure = tuple[str, float, float]  # a name, a figure, and the most that it may be
STEPS = 8
OFFICIAL = {  # losses of facebookresearch/mae in float32: images, side, ratio, normalised pixels, loss
    "tiny, pixels": (3, 32, 0.75, False, 1.0191806554794312),
    "tiny, normalised pixels": (3, 32, 0.5, True, 1.0039912462234497),
    "ViT-B, pixels": (2, 224, 0.75, False, 1.2024770975112915),
}


def apart(found: list[float], expected: list[float]) -> float:
    """The largest relative difference of losses; infinite where one is missing or not finite."""
    if len(found) != len(expected) or not np.isfinite([*found, *expected]).all():
        return float("inf")
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two tensors, as a share of the largest expected number."""
    expected = expected.detach().double().cpu()
    return float((found.detach().double().cpu() - expected).abs().max() / expected.abs().max())


def masks(device: torch.device) -> Iterator[Figure]:
    """Patches that the device orders differently from the CPU, for every installed sampler."""
    catalog, grid = Catalog(), Grid(14, 14)
    images = torch.rand(64, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for name in catalog.names("mask"):
        orders = [
            Mask.from_scores(
                catalog.build("mask", name, {}).scores(images.to(there), grid, Rng(11, torch.arange(64, device=there))),
                0.75,
            ).order.cpu()
            for there in (device, torch.device("cpu"))
        ]
        yield f"mask {name}: patches unlike the CPU's, of {orders[0].numel()}", float((orders[0] != orders[1]).sum()), 0


def official(device: torch.device) -> Iterator[Figure]:
    """The official code's losses, in float32 and in bfloat16."""
    for name, (images, side, ratio, norm, expected) in OFFICIAL.items():
        shapes = (recipe.EncoderShape(), recipe.DecoderShape()) if side == 224 else test_parity.TINY
        task = test_parity.build(side, *shapes, ratio, norm).to(device)
        pixels = test_parity.golden_images(images, side).to(device)
        noise = test_parity.golden_noise(images, task.grid.size).to(device)
        for precision, most in ((torch.float32, 1e-4), (torch.bfloat16, 1e-2)):
            task.to(precision)
            choose_attention(task)
            with torch.no_grad():
                loss = float(task.loss_of(pixels, noise))
            yield f"official loss, {name}, {str(precision).removeprefix('torch.')}", apart([loss], [expected]), most


def attention(device: torch.device) -> Iterator[Figure]:
    """The attention that is chosen on the device, and its gradient, against the formula in float64 on the CPU."""
    torch.manual_seed(0)
    for tokens, width, heads, first in ((50, 192, 3, 0), (197, 128, 4, 50)):
        encoder = recipe.EncoderShape(width=width, depth=1, heads=heads)
        block: Any = MaskedAutoencoder.from_recipe(recipe.Pretrain(encoder=encoder), Catalog()).encoder.blocks[0].attn
        values = torch.randn(4, tokens, width)
        for precision, most in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
            block.to(device, precision)
            choose_attention(block)
            given = values.to(device, precision).requires_grad_()
            found = attend(block, given, first)
            (slope,) = torch.autograd.grad(found.float().square().sum(), given)
            exact = given.detach().double().cpu().requires_grad_()
            block.double().cpu()
            expected = by_formula(block, exact, first)
            (wanted,) = torch.autograd.grad(expected.square().sum(), exact)
            name = f"attention of {tokens} tokens, {'fused' if block.fused_attn else 'explicit'}, {precision}"
            yield name.replace("torch.", ""), distance(found, expected), most
            yield f"{name}, gradient".replace("torch.", ""), distance(slope, wanted), most


def by_formula(block: Any, tokens: Tensor, first: int) -> Tensor:
    """Self-attention by its formula, a head at a time."""
    parts = block.qkv(tokens).chunk(3, dim=-1)
    mixed = []
    for q, k, v in zip(*(part.chunk(block.num_heads, dim=-1) for part in parts), strict=True):
        mixed.append(torch.softmax(q[:, first:] @ k.mT / q.shape[-1] ** 0.5, dim=-1) @ v)
    out: Tensor = block.proj(torch.cat(mixed, dim=-1))
    return out


def small(**engine: object) -> recipe.Pretrain:
    """A small ViT: 64 pixels, 64 patches of 8."""
    return recipe.Pretrain(
        data=recipe.Data(size=64, global_batch=32, micro_batch=32),
        encoder=recipe.EncoderShape(width=192, depth=4, heads=3, patch=8),
        decoder=recipe.DecoderShape(width=128, depth=2, heads=4),
        engine=recipe.EngineChoice(**{"zero": 1, "precision": "fp32", **engine}),  # type: ignore[arg-type]
    )


def losses(mae: recipe.Pretrain) -> list[float]:
    """Of the first steps, on one batch of noise, under the engine."""
    task = MaskedAutoencoder.from_recipe(mae, Catalog())
    groups = parameter_groups(task.named_parameters(), weight_decay=0.05)
    engine = Engine(task, groups, mae, micro_batch=mae.data.micro_batch)
    pixels = torch.randint(0, 256, (32, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    numbers = torch.arange(32)
    batch = Batch(pixels, numbers, numbers, numbers).to(engine.device)
    found = []
    for _ in range(STEPS):
        loss = engine(batch)
        engine.backward(loss)
        engine.step(3e-4)
        found.append(loss.item())
    engine.close()
    return found


def precision(device: torch.device) -> Iterator[Figure]:
    """bfloat16 against float32: a small ViT's first losses, which fall.

    Later ones are further apart, as master weights begin as bfloat16's, so small updates wait at first (docs/speed.md).
    """
    exact, coarse = losses(small()), losses(small(precision="bf16"))
    yield f"last of the first {STEPS} losses, as a share of the first, fp32", exact[-1] / exact[0], 0.99
    yield "first loss, bf16 against fp32", apart(coarse[:1], exact[:1]), 1e-3
    yield f"first {STEPS} losses, bf16 against fp32", apart(coarse, exact), 3e-2


def compiled(device: torch.device) -> Iterator[Figure]:
    """Blocks through torch.compile against the same without; a minute of compiling."""
    plain, fast = (losses(small(compile=choice)) for choice in (False, True))
    yield f"first {STEPS} losses, compiled against not, fp32", apart(fast, plain), 1e-4


def zero(device: torch.device) -> Iterator[Figure]:
    """ZeRO stages against plain torch on the CPU, and against each other."""
    plain = by_hand.steps().losses
    with tempfile.TemporaryDirectory() as folder:
        found = {stage: stages.losses_of({"zero": stage}, Path(folder)) for stage in test_engine.STAGES}
    for stage, each in found.items():
        yield f"{len(plain)} losses, ZeRO {stage} against plain torch on the CPU", apart(each, plain), 1e-4
        if stage != 1:
            yield f"{len(plain)} losses, ZeRO {stage} against ZeRO 1", apart(each, found[1]), test_engine.TOLERANCE


def resume(device: torch.device) -> Iterator[Figure]:
    """A run that is stopped after 5 of 12 steps, and gone on with, against one that is not."""
    from mae_pipe.pretraining import pretrain
    from mae_pipe.sharding import build

    catalog, random = Catalog(), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "images").mkdir()
        for number in range(24):
            pixels = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(home / "images" / f"{number:02d}.png")
        build(home / "images", home / "shards", catalog=catalog, workers=1)

        def run(out: Path, stop: int = -1) -> list[float]:
            found = []

            def seen(step: int, batch: Batch, loss: Tensor) -> None:
                found.append(loss.item())
                if step == stop:
                    os.kill(os.getpid(), signal.SIGTERM)

            with suppress(Stopped):
                pretrain(pretrain_and_die.chosen(), home / "shards", out, catalog=catalog, seen=seen)
            return found

        whole, begun, rest = run(home / "whole"), run(home / "parts", stop=4), run(home / "parts")
    yield "micro-batches after the resume, but for those left", abs(len(whole) - len(begun) - len(rest)), 0
    yield f"{len(whole)} losses, resumed against not", apart(begun + rest, whole), 0 if device.type == "cpu" else 1e-5


CHECKS: dict[str, Callable[[torch.device], Iterator[Figure]]] = {
    check.__name__: check for check in (masks, official, attention, precision, zero, resume, compiled)
}


def run(names: list[str], device: torch.device) -> list[dict[str, str | float | bool]]:
    """Every figure of the checks, and whether it is within bounds; a check that breaks ends no other."""
    found: list[dict[str, str | float | bool]] = []
    for name in names:
        try:
            for what, figure, most in CHECKS[name](device):
                found.append({"name": what, "figure": figure, "most": most, "holds": figure <= most})
                print(f"{'ok ' if figure <= most else 'BAD'} {what}: {figure:.2e}, at most {most:g}", flush=True)
        except Exception as error:
            traceback.print_exc()
            what = f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            found.append({"name": what, "figure": float("nan"), "most": 0.0, "holds": False})
            print(f"BAD {what}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS), metavar="CHECK")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    options = parser.parse_args()
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # engines take a GPU where they see one
    elif not torch.cuda.is_available():
        sys.exit("gpu_correct: no CUDA device is visible; run it on a machine with one, or with --device cpu")
    found = run(options.only, torch.device(options.device))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    bad = sum(not each["holds"] for each in found)
    print(f"{len(found) - bad} of {len(found)} figures are within their bounds on {options.device}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
