"""A plugin in a tiny model under ZeRO 3, where no parameter is whole between calls; a process of its own.

``python -m mae_pipe.testing.zero3`` reads a list of plugins from standard input, and writes what failed.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mae_pipe import recipe
from mae_pipe.catalog import Catalog
from mae_pipe.contracts import Head, View
from mae_pipe.errors import PluginError
from mae_pipe.testing.subject import Skip, Subject, require

SECONDS = 300  # for one process
BATCH = 4
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Asked:
    """A plugin by name, as it crosses over to the other process."""

    kind: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()


def trains_under_zero_3(subject: Subject) -> str:
    """A tiny model with it steps under ZeRO 3 with every parameter split, in float32 and bfloat16."""
    assert subject.entry is not None
    assert subject.catalog is not None
    if getattr(subject.catalog.find(subject.entry.kind, subject.entry.name), "follows", False):
        raise Skip("it has a part that follows the encoder, of which every process needs the whole")
    files = tuple(str(path) for path in subject.catalog.files)
    (why,) = failures([Asked(subject.entry.kind, subject.entry.name, subject.options, files)])
    require(not why, f"under ZeRO 3: {why}")
    return "two steps in float32 and two in bfloat16"


def failures(asked: Sequence[Asked]) -> list[str]:
    """What went wrong with each, "" where nothing did."""
    ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID")
    environment = {name: value for name, value in os.environ.items() if name not in ranks}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "mae_pipe.testing.zero3"],
            input=json.dumps([asdict(one) for one in asked]),
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return [f"it took more than {SECONDS} seconds"] * len(asked)
    try:
        said = json.loads(done.stdout.splitlines()[-1])
        return [str(why) for why in said]
    except (IndexError, ValueError):
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "")
        return [f"the process ended with {done.returncode}: {last.strip()}"] * len(asked)


def _main() -> None:
    said = []
    for one in json.load(sys.stdin):
        asked = Asked(**one)
        catalog = Catalog(files=tuple(map(Path, asked.files)))
        try:
            _try(Subject.of(asked.kind, asked.name, catalog=catalog, options=asked.options))
            said.append("")
        except Exception as error:
            said.append(" ".join(f"{type(error).__name__}: {error}".split())[:600])
    print("\n" + json.dumps(said))


def _try(subject: Subject) -> None:
    assert subject.entry is not None
    task_of: Callable[[], nn.Module]
    if subject.entry.kind == "head":
        from mae_pipe.testing import heads

        task_of = lambda: _Probing(subject)  # noqa: E731
        chosen: recipe.Recipe = recipe.Pretrain()
        batch: Any = heads.tokens_of(subject.make(**heads.GIVEN[0]), heads.GIVEN[0])
    elif subject.entry.kind == "method":
        from mae_pipe.testing import training

        task_of = lambda: training.made(subject)  # noqa: E731
        _, chosen = training.usable_recipe(subject)
        chosen = chosen.model_copy(
            update={"data": chosen.data.model_copy(update={"global_batch": BATCH, "micro_batch": BATCH})}
        )
        batch = training.batch_of(training.made(subject)).each(lambda tensor: tensor[:BATCH])
    else:
        chosen, task_of, batch = _pretraining(subject)
    torch.manual_seed(0)
    with torch.no_grad():
        expected = float(task_of()(batch))
    for precision, share in (("fp32", 1e-3), ("bf16", 0.1)):
        _steps(task_of(), batch, chosen, precision, expected, share)  # type: ignore[arg-type]


def _steps(
    task: nn.Module, batch: Any, chosen: recipe.Recipe, precision: Precision, expected: float, share: float
) -> None:
    """Two steps; the first loss is that of the same model without an engine."""
    from mae_pipe.engine import Engine
    from mae_pipe.optim import parameter_groups

    engine_choice = recipe.EngineChoice(zero=3, precision=precision, persistence_threshold=0)
    chosen = chosen.model_copy(update={"engine": engine_choice})
    shapes = {name: tuple(p.shape) for name, p in task.named_parameters()}
    engine = Engine(task, parameter_groups(task.named_parameters(), weight_decay=0.0), chosen, micro_batch=BATCH)
    try:
        losses = []
        for _ in range(2):
            loss = engine(batch.to(engine.device))
            losses.append(float(loss.detach()))
            if not loss.requires_grad:
                break  # a head that learns nothing
            engine.backward(loss)
            fine = engine.step(1e-3) or engine.scaled_too_high
            require(fine, f"a step in {precision} has gradients that are not finite")
        require(all(map(math.isfinite, losses)), f"the losses in {precision} are {losses}")
        far = abs(losses[0] - expected) > share * max(1.0, abs(expected))
        require(not far, f"the first loss in {precision} is {losses[0]:.5f}, and {expected:.5f} without an engine")
        whole = engine.weights()
        torn = [name for name, shape in shapes.items() if tuple(whole[name].shape) != shape]
        require(not torn, f"the weights {', '.join(torn)} are not whole when they are saved")
    finally:
        engine.close()


def _pretraining(subject: Subject) -> tuple[recipe.Recipe, Callable[[], nn.Module], Any]:
    """A tiny autoencoder with a mask sampler or a target."""
    from mae_pipe.data.batch import Batch
    from mae_pipe.tasks import MaskedAutoencoder
    from mae_pipe.testing import targets

    assert subject.entry is not None
    entry, catalog = subject.entry, subject.catalog
    assert catalog is not None
    view = targets.usable_views(subject)[0] if entry.kind == "target" else targets.VIEWS[0]
    parts: dict[str, Any] = {}
    if entry.kind == "mask":
        parts["mask"] = recipe.MaskChoice(name=entry.name, options=subject.options)
        parts["target"] = recipe.TargetChoice(name=_plain_target(catalog))
    else:
        parts["target"] = recipe.TargetChoice(name=entry.name, options=subject.options)
    chosen = recipe.Pretrain(
        data=recipe.Data(size=view.height, mean=view.mean, std=view.std, global_batch=BATCH, micro_batch=BATCH),
        encoder=recipe.EncoderShape(width=32, depth=2, heads=2, patch=view.patch[0]),
        decoder=recipe.DecoderShape(width=16, depth=1, heads=2),
        **parts,
    )

    def task_of() -> nn.Module:
        task = MaskedAutoencoder.from_recipe(chosen, catalog)
        if task.target.fit_images:
            with torch.no_grad():
                task.target.fit(targets.batches_of(view))
        return task

    return chosen, task_of, _batch(Batch, view)


def _plain_target(catalog: Catalog) -> str:
    """The target that every recipe has by default, or any that is there."""
    usual = recipe.TargetChoice().name
    known = catalog.names("target")
    if usual not in known and not known:
        raise PluginError("there is no target plugin to train with; reinstall mae-pipe")
    return usual if usual in known else known[0]


def _batch(make: Any, view: View) -> Any:
    pixels = torch.randint(
        0, 256, (BATCH, view.channels, view.height, view.width), generator=torch.Generator().manual_seed(3)
    )
    numbers = torch.arange(BATCH)
    return make(pixels.to(torch.uint8), torch.full((BATCH,), -1), numbers, numbers)


class _Probing(nn.Module):
    """Tokens through one layer and a head."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        from mae_pipe.testing import heads

        given = heads.GIVEN[0]
        self.head: Head = heads.made(subject, given)
        self.labels = heads.labels_of(self.head, given)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            self.body = nn.Linear(given["width"], given["width"])
        self.eval()  # no dropout: losses are compared

    def forward(self, tokens: Tensor) -> Tensor:
        output = self.head(self.body(tokens.to(self.body.weight.dtype)))
        return self.head.loss(output, self.labels.to(tokens.device)).mean()


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _main()
