"""A run folder: what it is of, its checkpoints, its weights (layout: docs/design.md)."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from mae_pipe import __version__, machine, recipe
from mae_pipe.catalog import Catalog
from mae_pipe.changes import FREE, within
from mae_pipe.checkpoints import Archive, check, read_record
from mae_pipe.data import region
from mae_pipe.data.address import without_keys
from mae_pipe.data.arrange import Begun, as_recorded
from mae_pipe.data.manifest import NAME as SHARDS_MANIFEST
from mae_pipe.data.manifest import Manifest
from mae_pipe.data.stream import Stream
from mae_pipe.disk import write_whole, writing, writing_whole
from mae_pipe.engine import Engine
from mae_pipe.errors import DiskError, RunError
from mae_pipe.optim import Plan
from mae_pipe.recipe import Pretrain, Recipe
from mae_pipe.saver import Saver
from mae_pipe.toml import flat
from mae_pipe.weights import Entry, write_safetensors

OPTIMIZER = "optimizer.name"
ADAMW = {"adamw", "fused_adam", "cpu_adam"}  # all compute the same, and which there is depends on the engine
# what a run may hold that was killed as it began; features, of a probe of a recipe's first weights
BEGUN = {"checkpoints", "features", "run.json", ".run.json.tmp", ".recipe.json.tmp"}

T = TypeVar("T")


class Run:
    """One run's folder. Every rank has one; rank 0 writes the small files."""

    def __init__(self, folder: Path, *, rank: int = 0) -> None:
        self.folder, self.rank = folder, rank
        self.checkpoints = folder / "checkpoints"

    def begin(self, chosen: Recipe, about: dict[str, Any], *, resume: str = "auto") -> Path | None:
        """Make the folder this recipe's, or find that it is; returns the checkpoint to go on from.

        Args:
            about: what else makes the run what it is ("shards", "shards_fingerprint", ...); kept in run.json.
            resume: "auto" goes on where there is a checkpoint, "none" wants an empty folder,
                else the path of a checkpoint.
        """
        return self.on_rank_0(lambda: self._begin(chosen, about, resume))

    def on_rank_0(self, work: Callable[[], T]) -> T:
        """What rank 0's ``work`` gives or raises, on every rank, so that none waits for one that has failed."""
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = work()
            except Exception as error:
                outcome[1] = error
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.broadcast_object_list(outcome, 0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]  # type: ignore[no-any-return]

    def _begin(self, chosen: Recipe, about: dict[str, Any], resume: str) -> Path | None:
        old = self.folder / "recipe.json"
        if old.is_file():
            if resume == "none":
                raise RunError(f"{self.folder} holds a run already; choose another --out, or --resume auto to go on")
            self._compare(chosen, about, self.folder)
        elif self.folder.is_dir() and {path.name for path in self.folder.iterdir()} - BEGUN:
            raise RunError(f"{self.folder} is not empty and holds no run; choose another --out")
        if resume in ("auto", "none"):
            found = self.newest()
        else:
            found = Path(resume)
            check(found)
            if (origin := found.resolve().parents[1]) != self.folder.resolve():
                read_recipe(origin)
                self._compare(chosen, about, origin)
        with writing(self.folder):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            for torn in self.checkpoints.glob(".*.tmp"):  # saves that did not come to an end
                shutil.rmtree(torn)
            if found is not None and (self.folder / "run.json").is_file():
                record = json.loads((self.folder / "run.json").read_text())
                record.setdefault("gone_on", []).append(
                    {
                        "checkpoint": str(found),
                        "world": about.get("world"),
                        "engine": chosen.engine.model_dump(mode="json"),
                        **_session(),
                    }
                )
                write_whole(self.folder / "run.json", _json(record))
            if not old.is_file():
                versions = {name: version(name) for name in ("torch", "timm", "deepspeed", "numpy", "pillow")}
                record = {
                    **about,
                    "task": chosen.task,
                    "versions": versions,
                    "decoder": region.decoder(),
                    "python": sys.version.split()[0],
                    **_session(),
                }
                write_whole(self.folder / "run.json", _json(record))
                write_whole(old, _json(chosen.model_dump(mode="json")))
        return found

    def make_room(self, parameters: int, *, keep: int, averaged: bool = False) -> None:
        """Refuse to begin what the disk cannot hold: better now than at the first checkpoint.

        AdamW's state and the float32 weights take 14 bytes a parameter in each of ``keep`` checkpoints
        and the one being written, an average of the weights 4 more; the plain weights beside them 8.
        All ranks call it.
        """
        each = 18 if averaged else 14

        def compare() -> None:
            held = sum(path.stat().st_size for path in self.folder.rglob("*") if path.suffix in (".pt", ".safetensors"))
            needed = parameters * (each * (keep + 1) + 8) - held
            free = shutil.disk_usage(self.folder).free
            if free < needed:
                raise DiskError(
                    f"{self.folder} has {free / 1e6:,.1f} MB free and {keep + 1} checkpoints of "
                    f"{parameters / 1e6:.1f} M parameters take {needed / 1e6:,.1f} MB more; free some space, choose "
                    "another folder, or lower saving.keep_last"
                )

        self.on_rank_0(compare)

    def _compare(self, chosen: Recipe, about: dict[str, Any], folder: Path) -> None:
        """Refuse to go on with another recipe or other data than the run's in ``folder``, naming what differs."""
        before = flat(read_recipe(folder).model_dump(mode="json"))  # keys that are newer than the run: their defaults
        now = flat(json.loads(_json(chosen.model_dump(mode="json"))))
        free = (*FREE, OPTIMIZER) if {before[OPTIMIZER], now[OPTIMIZER]} <= ADAMW else FREE
        names = [n for n in sorted({*before, *now}) if before.get(n) != now.get(n) and not within(n, free)]
        if names:
            said = "; ".join(f"{n} was {before.get(n)!r}, now {now.get(n)!r}" for n in names[:4])
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise RunError(
                f"{folder} is a run of another recipe: {said}{more}; give that recipe, or choose another --out"
            )
        record = json.loads((folder / "run.json").read_text())
        shards, samples = "shards_fingerprint", "samples_fingerprint"
        if record.get(shards) != about.get(shards) and record.get(samples) and record[samples] == about.get(samples):
            print(f"mae-pipe: other shards than {folder} began with, of the same images; going on", file=sys.stderr)
            record[shards] = about[shards]
        for name in ("shards_fingerprint", "order", "split", "encoder_fingerprint", "provenance"):
            if name in about and (record.get(name) or None) != (about[name] or None):
                raise RunError(
                    f"{folder} is a run with another {name.replace('_', ' ')} ({_short(record.get(name))}, now "
                    f"{_short(about[name])}); give the one it began with, or choose another --out"
                )

        for plugin in about.get("plugins", []):
            if plugin not in record.get("plugins", [plugin]):
                what = f"the {plugin['kind']} plugin {plugin['name']!r} of {plugin['package']} {plugin['version']}"
                print(f"mae-pipe: {what} is not the one that {folder} began with; going on with it", file=sys.stderr)

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole; damaged ones are named on stderr and passed over."""
        found = sorted(self.checkpoints.glob("step-*"), reverse=True)
        for path in found:
            try:
                check(path)
            except RunError as error:
                print(f"mae-pipe: {error}", file=sys.stderr)
                continue
            if path != found[0]:
                print(f"mae-pipe: going back to {path}", file=sys.stderr)
            return path
        if found:  # to begin anew would look as if nothing had happened
            raise RunError(
                f"{self.folder} has no checkpoint that is whole; choose another --out, or delete {self.checkpoints} "
                "to begin anew"
            )
        return None

    def saver(self, engine: Engine, recipe: Recipe, plan: Plan, publish: Callable[[Archive], None]) -> Saver:
        """What writes this run's checkpoints; ``publish`` as in ``Saver``."""
        epochs = recipe.saving.keep_every_epochs
        every = plan.steps_of(epochs) if epochs else None
        return Saver(engine, self.checkpoints, recipe.saving, keep_every=every, publish=publish)

    def restore(self, engine: Engine, checkpoint: Path) -> int:
        """Load a checkpoint that ``begin`` gave; returns its step. All ranks call it, on any number of them."""
        record = read_record(checkpoint)
        before = f"{record.world} processes, ZeRO {record.zero}, {record.precision}"
        now = f"{engine.world} processes, ZeRO {engine.stage}, {engine.precision}"
        if before != now and self.rank == 0:
            print(f"mae-pipe: {checkpoint.name} is of {before}; going on with {now}", file=sys.stderr)
        archive = Archive(checkpoint, record)
        engine.put(archive.read, archive.kinds, record.numbers)
        return record.step

    def go_back(self, engine: Engine, saver: Saver) -> int | None:
        """To the newest checkpoint, in the middle of training; its step. None: there is none. All ranks call it."""
        with suppress(DiskError):  # then it is the one before
            saver.finish()
        found = self.on_rank_0(self.newest)
        return None if found is None else self.restore(engine, found)

    def save_weights(self, name: str, entries: Iterable[Entry], metadata: dict[str, Any]) -> None:
        """Write ``name`` (.safetensors); every metadata value is JSON. Rank 0 only."""
        with writing_whole(self.folder / name) as file:
            write_safetensors(file, entries, metadata)


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a run folder."""
    path = folder / "recipe.json"
    if not path.is_file():
        raise RunError(f"{folder} is not a run folder (it has no recipe.json); give the --out of mae-pipe pretrain")
    return recipe.parse(json.loads(path.read_text()), str(path))


def pretraining_of(run: Path, *, from_scratch: bool = False) -> Pretrain:
    """The recipe that says an encoder's shape: a pretraining run's, or from scratch also one that ``run`` names."""
    named = from_scratch and not run.is_dir()
    chosen = recipe.load(str(run), task="pretrain") if named else read_recipe(run)
    if not isinstance(chosen, Pretrain):
        raise RunError(f"{run} is a {chosen.task} run; give the run folder that mae-pipe pretrain wrote")
    return chosen


def about(folder: Path) -> dict[str, Any]:
    """A run's run.json."""
    path = folder / "run.json"
    if not path.is_file():
        raise RunError(f"{folder} is not a run folder (it has no run.json); give the --out of mae-pipe pretrain")
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def begun_order(folder: Path) -> Begun | None:
    """The order of the images of a run that began in ``folder``, for ``Stream``; None: there is none."""
    return about(folder).get("order", 1) if (folder / "run.json").is_file() else None


def about_plugins(catalog: Catalog, shards: Path, **names: str) -> dict[str, Any]:
    """Kind, name, package, version and source hash of every plugin that a run uses, that of its shards too."""
    names["shards"] = Manifest.load(shards).format
    return {"plugins": [catalog.record(kind, name) for kind, name in sorted(names.items())]}


def about_data(shards: Path, split: str, stream: Stream, world: int) -> dict[str, Any]:
    """What makes a run what it is, besides its recipe: the data that it learns from, and its processes."""
    order = as_recorded(stream.order)
    return {
        "shards": str(shards.resolve()),
        "shards_fingerprint": hashlib.sha256((shards / SHARDS_MANIFEST).read_bytes()).hexdigest()[:16],
        "samples_fingerprint": stream.index.fingerprint(),
        "split": split,
        "images": stream.images,
        "world": world,
        **({"order": order} if order != 1 else {}),
    }


def _session() -> dict[str, Any]:
    """What is said of every command that works on a run."""
    return {
        "mae_pipe": __version__,
        "machine": machine.named(),
        "command": [without_keys(word) for word in sys.argv],
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=1) + "\n").encode()
