"""``mae-pipe demo``: the whole path in one go, on real digits or on the user's own images.

Every station calls what the command of its name calls. What is done already is kept, so a
demo that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from mae_pipe import digits, outcome, reporting, study
from mae_pipe import recipe as recipes
from mae_pipe.catalog import Catalog
from mae_pipe.data.index import SampleIndex
from mae_pipe.data.manifest import NAME as MANIFEST
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.sources import ImageSource
from mae_pipe.disk import write_whole, writing
from mae_pipe.errors import DataError, PluginError, RunError, TrainingError
from mae_pipe.spawning import Job, spawn

FORMATS = ("webdataset", "ffcv")
CHECKED_STEPS = 6
NOTE = "demo.json"


def demo(
    out: Path,
    *,
    data: Path | None = None,
    minutes: float = study.MINUTES,
    nproc: int = 1,
    console: Console | None = None,
) -> bool:
    """Images -> shards -> pretraining -> probes and finetunes -> report; True unless pretraining did not pay.

    Args:
        data: the user's images; default: 5,000 digits.
        minutes: scales the epochs of pretraining; the real time depends on the machine.
        nproc: processes for pretraining.
    """
    console = console or Console(stderr=True)
    catalog = Catalog()
    began = time.monotonic()
    say = _Narrator(console)
    _begin(out, data, minutes)

    say.station("Images")
    images = digits.write(out / "images") if data is None else data
    say(f"5,000 handwritten digits of 28 x 28 pixels in {images}" if data is None else f"yours, in {images}")

    say.station("Shards")
    shards = {name: out / f"shards-{name}" for name in FORMATS}
    for name in FORMATS:
        try:
            say(f"{name}: {_shard(images, shards[name], name, catalog)}")
        except PluginError as error:
            if name == FORMATS[0]:
                raise
            say(f"{name}: left out, since {error}")
            del shards[name]
    manifest = Manifest.load(shards[FORMATS[0]])
    chosen = study.of_digits(minutes)
    if data is not None:
        chosen = study.of_photos(manifest, minutes, _fewest(manifest, shards[FORMATS[0]]))

    say.station("Pretraining")
    run = out / "run"
    _pretrain(chosen.pretrain, chosen.pretrain_changes, shards[FORMATS[0]], run, nproc, console)
    say(f"{outcome.verdict([], outcome.metrics(run)[0])}")

    say.station("Formats")
    checks = _compare_formats(chosen, shards, out, console)
    write_whole(run / reporting.CHECKS, json.dumps(checks, indent=1).encode())
    for check in checks:
        say(f"{check['claim']}: {check['detail']}")
    if not checks:
        say("only one format is here, so there is nothing to compare")

    say.station("Probe and finetune")
    if why := _unlabelled(manifest):
        say(f"left out: {why}")
    else:
        _downstream(chosen, run, say)

    say.station("Pictures and report")
    from mae_pipe.reconstructing import reconstruct

    split = "val" if "val" in manifest.splits else next(iter(manifest.splits))
    picture = reconstruct(run, (), out / "reconstructions.png", catalog=catalog, shards=shards[FORMATS[0]], split=split)
    page = reporting.write([run], out / reporting.NAME)
    found = outcome.results(run)
    if found:
        console.print(_table(found), highlight=False)
    console.print(f"[bold]{outcome.verdict(found, outcome.metrics(run)[0])}[/]")
    console.print(f"in {(time.monotonic() - began) / 60:.1f} minutes; look at [bold]{page}[/] and {picture}")
    if not all(check["holds"] for check in checks):
        raise TrainingError("the two shard formats did not give the same losses; please report this as a bug")
    return not found or outcome.pays(found)


class _Narrator:
    """Says which station is reached, and what came of it."""

    def __init__(self, console: Console) -> None:
        self.console, self.number = console, 0

    def station(self, name: str) -> None:
        self.number += 1
        self.console.print(f"[bold]{self.number}  {name}[/]", highlight=False)

    def __call__(self, text: str) -> None:
        self.console.print(f"   {text}", highlight=False, markup=False, soft_wrap=True)


def _begin(out: Path, data: Path | None, minutes: float) -> None:
    """Make the folder, or find that it is this demo's."""
    note = out / NOTE
    wanted = {"data": str(data.resolve()) if data else "digits", "minutes": minutes}
    if data is not None and not data.is_dir():
        raise DataError(f"{data} is not a folder; give the folder that holds the images")
    if note.is_file():
        had = json.loads(note.read_text(encoding="utf-8"))
        if had != wanted:
            raise RunError(
                f"{out} holds a demo of {had.get('data')} for {had.get('minutes')} minutes, not of {wanted['data']} "
                f"for {minutes}; choose another --out"
            )
        return
    if out.is_dir() and any(out.iterdir()):
        raise RunError(f"{out} is not empty and holds no demo; choose another --out")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    write_whole(note, json.dumps(wanted).encode())


def _shard(images: Path, out: Path, name: str, catalog: Catalog) -> str:
    """Build and verify the shards of one format; in words what they hold."""
    from mae_pipe.sharding import build
    from mae_pipe.verifying import verify

    if not (out / MANIFEST).is_file():
        split_already = any((images / split).is_dir() for split in ImageSource.SPLITS)
        build(images, out, format=name, catalog=catalog, splits=() if split_already else ("val=0.1",))
    damage = verify(out, catalog=catalog)
    if damage:
        raise DataError(f"{damage[0]}; remove {out} and run the same command again")
    splits = Manifest.load(out).splits.values()
    counts = " + ".join(f"{split.images:,}" for split in splits)
    files = [shard for split in splits for shard in split.shards]
    refused = sum(len(split.refused) for split in splits)
    said = f"{counts} images in {len(files)} files, {sum(f.bytes for f in files) / 1e6:.1f} MB, every hash right"
    return f"{said}; {refused:,} files refused, see {out / MANIFEST}" if refused else said


def _pretrain(name: str, changes: Sequence[str], shards: Path, run: Path, nproc: int, console: Console) -> None:
    """As ``mae-pipe pretrain``: here, or in ``nproc`` processes."""
    if nproc > 1:
        given = [word for change in changes for word in ("--set", change)]
        code = spawn(Job(nproc), ["pretrain", name, "--shards", str(shards), "--out", str(run), *given])
        if code:
            raise TrainingError(f"pretraining in {nproc} processes ended with exit code {code}; see what it said above")
        return
    from mae_pipe.pretraining import pretrain

    recipe = recipes.load(name, changes, task="pretrain")
    assert isinstance(recipe, recipes.Pretrain)
    pretrain(recipe, shards, run, catalog=Catalog(), console=console)


def _compare_formats(chosen: study.Study, shards: dict[str, Path], out: Path, console: Console) -> list[outcome.Row]:
    """A few steps from each format: every loss, and every weight after them, should be the same."""
    from safetensors.numpy import load_file

    if len(shards) < 2:
        return []
    batch = recipes.load(chosen.pretrain, chosen.pretrain_changes).data.global_batch
    images = Manifest.load(shards[FORMATS[0]]).split("train").images
    short = study.lasting(CHECKED_STEPS * batch / images, 0.0)
    changes = (*chosen.pretrain_changes, *short, "logging.every_steps=1", "monitor.every_epochs=0")
    losses, weights = {}, {}
    for name, folder in shards.items():
        run = out / f"check-{name}"
        _pretrain(chosen.pretrain, changes, folder, run, 1, Console(quiet=True))
        losses[name] = [row["loss"] for row in outcome.metrics(run)[0]]
        weights[name] = load_file(run / "model.safetensors")
    one, other = (weights[name] for name in FORMATS)
    same = losses["ffcv"] == losses["webdataset"] and all((one[name] == other[name]).all() for name in one)
    ends = " and ".join(f"{values[-1]:.6f} ({name})" for name, values in losses.items())
    how = "every loss and every weight equal to the last bit" if same else "they differ"
    return [
        {
            "claim": "FFCV and WebDataset shards train the same network",
            "holds": same,
            "detail": f"{how} after {len(losses['webdataset'])} steps; last losses {ends}",
        }
    ]


def _unlabelled(manifest: Manifest) -> str:
    """Why there is nothing to classify, or an empty string."""
    if len(manifest.classes) < 2:
        return f"the images have no classes; put them into class folders, {Path('FOLDER/CLASS/x.jpg')}, to measure more"
    if not {"train", "val"} <= set(manifest.splits):
        return "there is no split to measure on; add a folder val beside train"
    return ""


def _fewest(manifest: Manifest, shards: Path) -> int:
    """Training images of the smallest class; 0 where there are no classes to compare."""
    if _unlabelled(manifest):
        return 0
    labels = SampleIndex.load(shards, manifest.splits["train"].index).label
    return int(np.bincount(labels[labels >= 0], minlength=len(manifest.classes)).min())


def _downstream(chosen: study.Study, run: Path, say: _Narrator) -> None:
    """As ``mae-pipe probe`` and ``mae-pipe finetune``, each with and without the pretrained weights."""
    from mae_pipe.downstream import downstream

    for name, changes in ((chosen.probe, chosen.probe_changes), (chosen.finetune, chosen.finetune_changes)):
        for from_scratch in (True, False):
            # Layer decay keeps what pretraining put into the lower layers; from scratch it would only hold them back.
            recipe = recipes.load(name, (*changes, "optimizer.layer_decay=1.0") if from_scratch else changes)
            assert isinstance(recipe, recipes.Downstream)
            reached = downstream(run, recipe, catalog=Catalog(), from_scratch=from_scratch, console=say.console)
            start = "an untrained" if from_scratch else "the pretrained"
            say(f"{recipe.task} of {start} encoder: {100 * reached.metrics['top1']:.1f} % of {reached.images:,} images")


def _table(found: Sequence[outcome.Result]) -> Table:
    """The results as a person reads them, narrow enough for 80 columns."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for heading in ("top-1", "labels", "evaluated on"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in found:
        top1 = f"[bold]{100 * result.score:.1f} %[/] ± {100 * result.margin:.1f}"
        labels = f"{result.labels_per_class} a class" if result.labels_per_class else "all"
        table.add_row(result.name, top1, labels, f"{result.images:,} images")
    return table
