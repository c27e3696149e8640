"""``mae-pipe reproduce run`` and ``page``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from mae_pipe import launch
from mae_pipe.catalog import Catalog
from mae_pipe.errors import RunError, closest
from mae_pipe.reproducing import clocks, cluster, folder, jobs, page, published, running, show
from mae_pipe.reproducing.folder import Reproduction
from mae_pipe.reproducing.forecast import Forecast
from mae_pipe.reproducing.stems import Stem, Study, Trained, extra_of, plan

CLOCK = "clock"  # what --only calls the timing of steps


@dataclass(frozen=True)
class Asked:
    """How a table is run: the options of ``mae-pipe reproduce run``."""

    scale: str
    shards: Path | str | None
    seeds: int
    changes: tuple[str, ...]
    plugins: tuple[Path, ...]

    def command(self, table: str, out: Path) -> list[str]:
        """The words of the command that does the same."""
        words = ["reproduce", "run", table, "--scale", self.scale, "--seeds", str(self.seeds)]
        words += ["--out", str(out.absolute())]
        if self.shards is not None:
            words += ["--shards", str(self.shards.absolute() if isinstance(self.shards, Path) else self.shards)]
        words += [f"--set={change}" for change in self.changes]
        return [*words, *(f"--plugin={path.absolute()}" for path in self.plugins)]


def dry_run(table: str, out: Path, asked: Asked, *, at_once: int, tflops: float, console: Console) -> None:
    """Say what would be run."""
    catalog = Catalog(asked.plugins)
    scale = published.scale(asked.scale)
    here = folder.looked_at(scale, asked.shards, out, asked.changes, catalog)
    study = _study(table, here, asked.seeds)
    for line in show.plan(study, here, Forecast(here, catalog, tflops=tflops, at_once=at_once)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def run(table: str, out: Path, asked: Asked, *, at_once: int, only: str | None, console: Console) -> Path | None:
    """Run what is not there yet and write the pages; the path of the HTML. ``only``: one piece, and no page."""
    catalog = Catalog(asked.plugins)
    here = folder.begin(out, published.scale(asked.scale), asked.shards, asked.changes, catalog, console)
    study = _study(table, here, asked.seeds)
    if only == CLOCK:
        clocks.measure(study, here, catalog, console)
        return None
    if only is not None:
        running.make(_named(only, study), here, catalog, console)
        return None
    if at_once > 1:
        jobs.run_together(study, here, asked.command(table, out), at_once, console)
    else:
        jobs.run(study, here, catalog, console)
    clocks.measure(study, here, catalog, console)
    return page.write(study, here) if launch.place().rank == 0 else None


def submission(table: str, out: Path, asked: Asked, job: cluster.Wanted, console: Console) -> str:
    """A script that submits all that is left to SLURM."""
    here = folder.begin(out, published.scale(asked.scale), asked.shards, asked.changes, Catalog(asked.plugins), console)
    study = _study(table, here, asked.seeds)
    last = [*(["--only", CLOCK] if study.table.clocked else [])]
    return cluster.script(jobs.left(study, here), asked.command(table, out), last, here.out, job, table, asked.seeds)


def page_of(table: str, out: Path, *, seeds: int) -> Path:
    """Write the pages of what is there; the path of the HTML."""
    here = folder.read(Path(out))
    return page.write(_study(table, here, seeds), here)


def _study(table: str, here: Reproduction, seeds: int) -> Study:
    return plan(published.table(table), here.scale, seeds=seeds, data=here.data, extra=extra_of(here.changes))


def _named(name: str, study: Study) -> Stem | Trained:
    pieces: dict[str, Stem | Trained] = {**study.tokenizers, **study.stems}
    if name not in pieces:
        raise RunError(f"{study.table.where} has no run {name!r}{closest(name, pieces)}; the images may be others now")
    return pieces[name]
