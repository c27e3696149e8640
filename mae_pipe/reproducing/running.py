"""One stem, from its first step to its last measurement; what is done already is kept."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from mae_pipe import launch, outcome
from mae_pipe.catalog import Catalog
from mae_pipe.disk import write_whole, writing
from mae_pipe.downstream import RESULT, downstream
from mae_pipe.errors import RunError
from mae_pipe.pretraining import pretrain
from mae_pipe.provenance import as_toml
from mae_pipe.recipe import Pretrain, changed
from mae_pipe.reproducing.folder import Reproduction
from mae_pipe.reproducing.stems import TOKENIZER, Evaluation, Stem, Trained
from mae_pipe.runs import Run
from mae_pipe.tokenizer.training import train_tokenizer

PRETRAINED = "pretrained.json"
SHAPE = "recipe.toml"


def make(what: Stem | Trained, here: Reproduction, catalog: Catalog, console: Console) -> None:
    """Train a stem and measure it, or train a tokenizer; goes on where it was stopped. All ranks call it.

    Raises:
        RunError: another process is at it.
    """
    with _alone(here.stems / what.name):
        if isinstance(what, Trained):
            _tokenizer(what, here, catalog, console)
        else:
            _stem(what, here, catalog, console)


def whole(what: Stem | Trained, here: Reproduction) -> bool:
    """Whether nothing is left to do."""
    place = here.stems / what.name
    if isinstance(what, Trained):
        return (place / RESULT).is_file()
    begun = what.scratch or (place / PRETRAINED).is_file()
    return begun and all((place / e.name / RESULT).is_file() for e in what.evaluations)


def _stem(stem: Stem, here: Reproduction, catalog: Catalog, console: Console) -> None:
    place = here.stems / stem.name
    chosen = stem.recipe
    if stem.tokenizer is not None:
        folder = here.stems / stem.tokenizer.name
        if not (folder / RESULT).is_file():
            raise RunError(f"{stem.name} takes its tokens from {folder}, which is not whole; run that first")
        chosen = changed(chosen, {TOKENIZER: str(folder)})
    run = place / ("pretrain" if not stem.scratch else SHAPE)
    if stem.scratch:
        if launch.place().rank == 0:
            with writing(place):
                place.mkdir(exist_ok=True)
            write_whole(run, as_toml(chosen).encode())
        _done(run)  # all wait for it
    elif not _done(place / PRETRAINED):
        _pretrain(chosen, here, run, catalog, console)
    for evaluation in stem.evaluations:
        _evaluate(evaluation, stem, run, here, catalog, console)


def _pretrain(chosen: Pretrain, here: Reproduction, run: Path, catalog: Catalog, console: Console) -> None:
    pretrain(chosen, here.shards, run, catalog=catalog, console=console)
    if launch.place().rank == 0:
        last = outcome.metrics(run)[0][-1]
        said = {"steps": last["step"], "loss": last["loss"]}
        write_whole(run.parent / PRETRAINED, (json.dumps(said) + "\n").encode())
        shutil.rmtree(run / "checkpoints")  # the weights are there, and nothing goes on from here


def _evaluate(
    evaluation: Evaluation, stem: Stem, run: Path, here: Reproduction, catalog: Catalog, console: Console
) -> None:
    folder = run.parent / evaluation.name
    if _done(folder / RESULT):
        return
    downstream(
        run,
        evaluation.recipe,
        catalog=catalog,
        shards=here.shards,
        out=folder,
        from_scratch=stem.scratch,
        cached=evaluation.cached,
        console=console,
    )
    if launch.place().rank == 0:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _tokenizer(trained: Trained, here: Reproduction, catalog: Catalog, console: Console) -> None:
    folder = here.stems / trained.name
    if not _done(folder / RESULT):
        train_tokenizer(trained.recipe, here.shards, folder, catalog=catalog, console=console)


def _done(file: Path) -> bool:
    """Whether a file is there, as rank 0 sees it: a disk that several nodes share may show it to them later."""
    place = launch.join()
    return Run(file.parent, rank=place.rank).on_rank_0(file.is_file)


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Hold a stem's folder, so that no other process works on it; the lock ends with its process."""
    if launch.place().rank:
        yield
        return
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
    lock = place.with_name(f".{place.name}.lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"another process works on {place}; wait for it, or end it first") from error
        yield
