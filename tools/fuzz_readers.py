"""Damaged inputs for everything that reads bytes of others, in processes of their own; run by fuzz_readers.sh.

``fuzz_readers.py CASES [FIRST]``. A case is a number: the same number is the same input. What is read must be what was
written, and what is not read must be a ``MaePipeError``, in 10 seconds and 2 GB; anything else is a finding.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

SEED = 0
SECONDS, BYTES = 10, 2 << 30
WORKERS = len(os.sched_getaffinity(0))


def main() -> None:
    cases, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    work = Path(tempfile.mkdtemp(prefix="fuzz-"))
    from tools import fuzz_inputs

    fuzz_inputs.good(work)
    pool = [_Worker(work, number) for number in range(min(WORKERS, cases))]
    todo, outcomes, findings = iter(range(first, first + cases)), Counter[str](), 0
    for worker in pool:
        worker.give(next(todo, None))
    while busy := [worker for worker in pool if worker.case is not None]:
        select.select([worker.answers for worker in busy], [], [], 1)
        for worker in busy:
            answer = worker.answer()
            if answer is None:
                continue
            if answer.startswith("finding"):
                findings += 1
                kept = work / "findings" / str(worker.case)
                shutil.copytree(worker.folder, kept, dirs_exist_ok=True)
                print(f"case {worker.case}: {answer}; the input is in {kept}", flush=True)
            outcomes[answer.partition(":")[0]] += 1
            worker.give(next(todo, None))
    for worker in pool:
        worker.end()
    print(f"{cases:,} cases, {findings:,} findings")
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:8,} {outcome}")
    if not findings:
        shutil.rmtree(work)
    sys.exit(bool(findings))


class _Worker:
    """A process that lives until a case ends it."""

    def __init__(self, work: Path, number: int) -> None:
        self._work, self.folder = work, work / f"worker-{number}"
        self.case: int | None = None
        self._begin()

    def _begin(self) -> None:
        environment = {**os.environ, "LD_PRELOAD": os.environ.get("FUZZ_PRELOAD", "")}
        command = [sys.executable, __file__, "--worker", str(self._work), str(self.folder)]
        self._errors = (self._work / f"{self.folder.name}.txt").open("wb")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment, bufsize=0
        )
        assert self._process.stdout
        self.answers = self._process.stdout
        self._read()  # it is ready

    def _read(self) -> bytes:
        return os.read(self.answers.fileno(), 1 << 16)

    def give(self, case: int | None) -> None:
        self.case, self._until = case, time.monotonic() + SECONDS
        if case is not None:
            assert self._process.stdin
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(b"%d\n" % case)

    def answer(self) -> str | None:
        """What became of the case; None: not known yet."""
        if not select.select([self.answers], [], [], 0)[0]:
            if time.monotonic() < self._until:
                return None
            self._process.kill()
            what = f"finding: no answer in {SECONDS} seconds"
        else:
            said = self._read()
            if said:
                return said.decode().strip()
            what = "finding: the process ended with"
        status = self._process.wait()
        self._errors.close()
        told = Path(self._errors.name).read_text(errors="replace")[-3000:]
        self._begin()
        return f"{what} {status}\n{told}"

    def end(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
        self._errors.close()


# -- in a worker -------------------------------------------------------------------------------------------------------


def work_on(source: Path, folder: Path) -> None:
    """Read numbers of cases, write what became of each."""
    _limit()
    from tools import fuzz_inputs

    readers = _Readers(source)
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever prints
    out.write("ready\n")
    for line in sys.stdin:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        kind = fuzz_inputs.make(int(line), SEED, source, folder)
        try:
            readers.vary(int(line) // 10)
            out.write(f"{kind} {readers.read(kind, folder)}\n")
        except Exception as error:
            told = "".join(traceback.format_exception(error))[-2500:].replace("\n", "\n    ")
            out.write(f"finding: {kind}: {type(error).__name__}\n    {told}\n")


def _limit() -> None:
    """The decoder with sanitizers, where there is one; else a limit of memory by the system."""
    native = os.environ.get("FUZZ_NATIVE")
    if native:
        sys.path.insert(0, native)
        import _native

        import mae_pipe.data

        sys.modules["mae_pipe.data._native"] = _native
        mae_pipe.data._native = _native
    import torch  # noqa: F401 (its libraries are no fault of the reader's)

    if not native:
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + BYTES, held + BYTES))


class _Readers:
    """Reads all that is in a folder, as the commands do."""

    def __init__(self, source: Path) -> None:
        from mae_pipe import recipe
        from mae_pipe.catalog import Catalog
        from mae_pipe.data import region
        from mae_pipe.data.index import SampleIndex
        from mae_pipe.data.manifest import Manifest
        from tools.fuzz_inputs import FOLDERS

        self._catalog, self._native = Catalog(), region._native
        self._data = recipe.Data(size=16, micro_batch=4, workers=0, mean=(0.5,) * 3, std=(0.5,) * 3)
        self._known: dict[int, tuple[int, int, int, int]] = {}
        for folder in FOLDERS:
            index = SampleIndex.load(source / folder, Manifest.load(source / folder).splits["train"].index)
            for columns in zip(index.crc32, index.size, index.encoding, index.width, index.height, strict=True):
                self._known[int(columns[0])] = tuple(map(int, columns[1:]))  # type: ignore[assignment]

    def vary(self, number: int) -> None:
        """Every other index is mapped, as large ones are, and every fourth image is left to Pillow."""
        from mae_pipe.data import index, region

        index.MAPPED = 0 if number % 2 else 32 << 20
        region._native = None if number % 4 == 1 else self._native

    def read(self, kind: str, folder: Path) -> str:
        if kind in ("tar", "zip", "beton"):
            return self._archive(kind, folder)
        return self._shards(folder / "shards")

    def _archive(self, kind: str, folder: Path) -> str:
        """As a source, and as shards that are indexed where they lie."""
        from mae_pipe.data.refusal import Refusal
        from mae_pipe.data.scan import scan
        from mae_pipe.data.sources import open_source, recognised
        from mae_pipe.errors import DataError, MaePipeError
        from mae_pipe.indexing import index
        from mae_pipe.verifying import verify

        path, done = folder / f"x.{kind}", "refused"
        with contextlib.suppress(MaePipeError):
            source = open_source(path, recognised(path, self._catalog), self._catalog, {})
            try:
                found = scan(source)
                for split in found.splits:
                    for number in range(len(split)):
                        with contextlib.suppress(Refusal):
                            source.read(split.place(number))
                        source.stamp(split.place(number))
                        source.origin(split.place(number))
                done = "listed"
            finally:
                source.close()
        if kind == "zip":
            return done
        try:
            index([str(path)], folder / "index", catalog=self._catalog, workers=1)
        except MaePipeError as error:
            _check_sentence(error)
            return done
        wrong = verify(folder / "index", catalog=self._catalog)
        if wrong:
            raise AssertionError(wrong)
        try:
            self._all(folder / "index", believed=False)
        except DataError as error:
            raise AssertionError("what was indexed cannot be read") from error
        return "indexed"

    def _shards(self, folder: Path) -> str:
        from mae_pipe.errors import MaePipeError
        from mae_pipe.verifying import verify

        done = "refused"
        try:
            done = "verified" if not verify(folder, catalog=self._catalog) else "found damaged"
        except MaePipeError as error:
            _check_sentence(error)
        try:
            self._all(folder, believed=True)
        except MaePipeError as error:
            _check_sentence(error)
            return done
        return f"{done} and read"

    def _all(self, folder: Path, *, believed: bool) -> None:
        """Every image, map, mark, label and view; where they are ``believed``, what is read must be what was stored."""
        from mae_pipe.data.manifest import Manifest
        from mae_pipe.data.order import Share
        from mae_pipe.data.sample import ENCODINGS
        from mae_pipe.data.stream import open_stream
        from mae_pipe.errors import MaePipeError

        manifest, failed = Manifest.load(folder), None
        for name, split in manifest.splits.items():
            kinds: list[Any] = ["class"] + ["multi"] * (manifest.labelling == "multi") + ["map"] * split.maps
            for labels in kinds:
                for training in (True, False):
                    stream = open_stream(
                        folder,
                        name,
                        self._data,
                        seed=0,
                        share=Share(0, 1, 1),
                        catalog=self._catalog,
                        labels=labels,
                        training=training,
                    )
                    try:
                        for row in range(stream.images):
                            try:
                                pixels, maps = stream._form.memory(1)
                                space = [pixels[0].numpy()], None if maps is None else maps.numpy()
                                stream._filler.prepare(_one(row), _one(row), *space)([0])
                                stream._form.batch(_one(row), _one(row), pixels, maps)
                                stored = stream.shelf.read(row)
                                stream.shelf.index.key(row)
                            except MaePipeError as error:
                                failed = error
                                continue
                            about = (len(stored.data), ENCODINGS.index(stored.encoding), stored.width, stored.height)
                            if believed and self._known.get(zlib.crc32(stored.data)) != about:
                                raise AssertionError(f"row {row} is {about}, and no image that was written")
                    finally:
                        stream.close()
        if failed:
            raise failed


def _one(number: int) -> Any:
    import numpy as np

    return np.array([number], np.int64)


def _check_sentence(error: Exception) -> None:
    if "\n" in str(error) or len(str(error)) > 2000:
        raise AssertionError("not one sentence") from error


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        work_on(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
