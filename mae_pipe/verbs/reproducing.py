"""The paper's tables, run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mae_pipe.verbs.given import Place, path_of, place_of, shown

if TYPE_CHECKING:
    from rich.console import Console


def reproduce(
    table: str,
    out: Place,
    *,
    scale: Literal["paper", "imagenette", "digits"] = "imagenette",
    shards: Place | None = None,
    seeds: int = 3,
    changes: Sequence[str] = (),
    jobs: int = 1,
    dry_run: bool = False,
    tflops: float = 312.0,
    slurm: Place | None = None,
    gpus: int = 8,
    nodes: int = 1,
    time: str = "24:00:00",
    directives: Sequence[str] = (),
    only: str | None = None,
    plugins: Sequence[Place] = (),
    console: Console | None = None,
) -> Path | None:
    """Run what ``table`` of the paper wants and is not in ``out`` yet (docs/reproducing-the-paper.md).

    Args:
        shards: shards or images with the splits train and val; the scale "digits" brings its own.
        changes: of recipes, by part (pretrain, finetune, probe, tokenizer): "pretrain.schedule.epochs=2".
        jobs: processes at a time.
        dry_run: print to ``console`` what would be run, and do nothing.
        tflops: of one GPU at its peak, for the hours of a dry run at the paper's scale.
        slurm: write a script there that submits all with ``gpus``, ``nodes``, ``time`` and ``directives``; run nothing.
        only: the name of one run, and no page.

    Returns:
        The page; None where none was written.

    Raises:
        MaePipeError: there is no such table, the images do not fit, or a run failed; what is done is kept.
    """
    from mae_pipe.disk import write_whole
    from mae_pipe.reproducing import verb
    from mae_pipe.reproducing.cluster import Wanted

    given = None if shards is None else place_of(shards)
    asked = verb.Asked(scale, given, seeds, tuple(changes), tuple(map(Path, plugins)))
    folder, to = Path(out), path_of(slurm)
    if dry_run:
        verb.dry_run(table, folder, asked, at_once=jobs, tflops=tflops, console=shown(console))
    elif to is not None:
        wanted = Wanted(nodes, gpus, time, sys.executable, tuple(directives))
        write_whole(to, verb.submission(table, folder, asked, wanted, shown(console)).encode())
    else:
        return verb.run(table, folder, asked, at_once=jobs, only=only, console=shown(console))
    return None
