"""Checks of shard formats."""

from __future__ import annotations

import io
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from mae_pipe.data import arrays, decode
from mae_pipe.data.sample import Encoding, Placed, Sample, ShardFormat, Stored
from mae_pipe.errors import DataError
from mae_pipe.testing.subject import Subject, hold, no_global_randomness, require

ENCODINGS: tuple[Encoding, ...] = ("jpeg", "png", "webp")
SAMPLES = 12


def samples() -> Iterator[Sample]:
    """JPEG, PNG and WebP; colour and grey; with and without a label; short and long keys."""
    random = np.random.default_rng(0)
    for number in range(SAMPLES):
        encoding = ENCODINGS[number % 3]
        width, height = 20 + number, 30
        coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        picture = coarse.resize((width, height), Image.Resampling.BICUBIC).convert("L" if number == 3 else "RGB")
        buffer = io.BytesIO()
        picture.save(buffer, encoding.upper(), lossless=True) if encoding == "webp" else picture.save(buffer, encoding)
        label = None if number == 5 else number
        yield Sample(f"{'k' * 12 * number}/{number}", buffer.getvalue(), encoding, width, height, label)


def _written(subject: Subject, folder: str) -> tuple[ShardFormat, Path, list[Placed]]:
    format: ShardFormat = subject.make()
    path = Path(folder) / f"shard{format.suffix}"
    return format, path, format.write(path, samples())


def says_its_suffix(subject: Subject) -> str:
    """Its suffix begins with a dot, and a largest side is a number of pixels."""
    format: ShardFormat = subject.make()
    name, suffix = type(format).__name__, getattr(format, "suffix", None)
    right = isinstance(suffix, str) and len(suffix) > 1 and suffix[0] == "." and "/" not in suffix
    require(right, f"{name}.suffix is {suffix!r}, expected something such as '.tar'")
    limit = format.max_side
    require(limit is None or (isinstance(limit, int) and limit > 0), f"{name}.max_side is {limit!r}, expected pixels")
    return f"files end in {suffix}"


def gives_back_what_it_was_given(subject: Subject) -> str:
    """Every picture is read as it was written, from where its place says, with its crc32."""
    with tempfile.TemporaryDirectory() as folder:
        format, path, places = _written(subject, folder)
        name = type(format).__name__
        require(len(places) == SAMPLES, f"{name}.write gave {len(places)} places for {SAMPLES} samples")
        reader, content = format.open(path), path.read_bytes()
        for number, (sample, placed) in enumerate(zip(samples(), places, strict=True)):
            data = reader.read(number, placed)
            where = f"{name}: sample {number} ({sample.encoding})"
            require(len(data) == placed.size, f"{where} is read as {len(data)} bytes, its place says {placed.size}")
            require(zlib.crc32(data) == placed.crc32, f"{where} does not have the crc32 of its place")
            inside = content[placed.offset : placed.offset + placed.size] == data
            require(inside, f"{where} does not lie in the file at byte {placed.offset}, where its place says")
            kept = placed.encoding == "raw" or bytes(data) == sample.image
            require(kept, f"{where} comes back with other bytes; store image files as they are, or raw pixels")
            seen = decode.picture(Stored(data, placed.encoding, sample.width, sample.height))
            original = decode.picture(Stored(sample.image, sample.encoding, sample.width, sample.height))
            require(
                np.array_equal(np.asarray(seen), np.asarray(original)), f"{where} is another picture when it is read"
            )
        reader.close()
    raw = sorted(
        {sample.encoding for sample, placed in zip(samples(), places, strict=True) if placed.encoding == "raw"}
    )
    return f"{', '.join(ENCODINGS)}" + (f"; {', '.join(raw)} as raw pixels" if raw else "")


def keeps_maps(subject: Subject) -> None:
    """The map of each sample, a class for every pixel, is read as it was written."""
    with tempfile.TemporaryDirectory() as folder:
        format: ShardFormat = subject.make()
        name, path = type(format).__name__, Path(folder) / f"shard{format.suffix}"
        given = [replace(sample, map=_map_of(number, sample)) for number, sample in enumerate(samples())]
        places = format.write(path, iter(given))
        reader = format.open(path)
        for number, (sample, placed) in enumerate(zip(given, places, strict=True)):
            assert sample.map is not None
            where = f"{name}: the map of sample {number}"
            require(placed.map is not None, f"{where} has no place; write sample.map where it is not None")
            assert placed.map is not None
            data = bytes(reader.read_map(number, placed.map))
            right = len(data) == placed.map.size and zlib.crc32(data) == placed.map.crc32
            require(right, f"{where} does not have the size and crc32 of its place")
            seen, original = np.asarray(decode.map_of(data)), np.asarray(decode.map_of(sample.map))
            require(np.array_equal(seen, original), f"{where} is another when it is read")
        reader.close()


def _map_of(number: int, sample: Sample) -> bytes:
    """A PNG file of the sample's size."""
    classes = np.add.outer(np.arange(sample.height), np.arange(sample.width)) // 5 + number
    buffer = io.BytesIO()
    Image.fromarray(classes.astype(np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def keeps_any_channels(subject: Subject) -> None:
    """Images of other than three channels, which are arrays, come back as they are."""
    with tempfile.TemporaryDirectory() as folder:
        format: ShardFormat = subject.make()
        name, path = type(format).__name__, Path(folder) / f"shard{format.suffix}"
        random = np.random.default_rng(1)
        arrays_of = [random.integers(0, 256, (9, 7 + number, 6), dtype=np.uint8) for number in range(3)]
        given = [
            Sample(f"k/{number}", arrays.stored(pixels), "npy", pixels.shape[1], 9, number, channels=6)
            for number, pixels in enumerate(arrays_of)
        ]
        places = format.write(path, iter(given))
        reader = format.open(path)
        for number, (pixels, placed) in enumerate(zip(arrays_of, places, strict=True)):
            data = reader.read(number, placed)
            require(zlib.crc32(data) == placed.crc32, f"{name}: array {number} does not have the crc32 of its place")
            seen = decode.picture(Stored(data, placed.encoding, pixels.shape[1], 9), channels=6)
            require(np.array_equal(np.asarray(seen), pixels), f"{name}: array {number} is another when it is read")
        reader.close()


def writes_the_same_again(subject: Subject) -> None:
    """The same samples give the same bytes, at any path."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        format, first, places = _written(subject, one)
        _, second, again = _written(subject, other)
        name = type(format).__name__
        require(places == again, f"{name}.write gave other places for the same samples")
        alike = first.read_bytes() == second.read_bytes()
        require(alike, f"{name}.write gave other bytes for the same samples; leave out times, paths and random numbers")


def is_read_by_threads(subject: Subject) -> None:
    """Four threads read from one reader at once."""
    with tempfile.TemporaryDirectory() as folder:
        format, path, places = _written(subject, folder)
        reader, wrong, together = format.open(path), list[str](), threading.Barrier(4)

        def read_all() -> None:
            together.wait()
            try:
                for _ in range(25):
                    for number, placed in enumerate(places):
                        if zlib.crc32(reader.read(number, placed)) != placed.crc32:
                            wrong.append(f"sample {number} had other bytes")
            except Exception as error:
                wrong.append(f"{type(error).__name__}: {error}")

        threads = [threading.Thread(target=read_all) for _ in range(4)]
        usual = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)  # a thread is put off in the middle of a read, however few there are
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(usual)
        reader.close()
        require(not wrong, f"{type(format).__name__} read by four threads at once: {wrong[0] if wrong else ''}")


def outlives_its_reader(subject: Subject) -> None:
    """Bytes that were read stay what they are when the reader is closed."""
    with tempfile.TemporaryDirectory() as folder:
        format, path, places = _written(subject, folder)
        reader = format.open(path)
        data = reader.read(0, places[0])
        reader.close()
        same = zlib.crc32(data) == places[0].crc32
        require(same, f"{type(format).__name__}: bytes that were read change when the reader is closed")


def names_damage(subject: Subject) -> str:
    """A file that is cut, empty, missing or something else is a DataError that names it."""
    with tempfile.TemporaryDirectory() as folder:
        format, path, places = _written(subject, folder)
        content = path.read_bytes()
        damaged: dict[str, Callable[[], object]] = {
            "cut": lambda: path.write_bytes(content[: places[-1].offset - 1]),
            "empty": lambda: path.write_bytes(b""),
            "something else": lambda: path.write_bytes(b"\xff" * (places[0].offset + 1)),
            "missing": path.unlink,
        }
        for what, harm in damaged.items():
            harm()
            said = ""
            try:
                reader = format.open(path)
                for number, placed in enumerate(places):
                    reader.read(number, placed)
                reader.close()
            except DataError as error:
                said = str(error)
            except Exception as error:
                said = f"raised {type(error).__name__}"
            named = path.name in said
            require(
                named,
                f"{type(format).__name__} of a file that is {what} {said or 'said nothing'}; "
                "raise a DataError that names it",
            )
    return ", ".join(damaged)


def ignores_global_randomness(subject: Subject) -> None:
    """Nothing is drawn from the generators of PyTorch, NumPy and Python."""
    with tempfile.TemporaryDirectory() as folder, no_global_randomness("writing a shard"):
        _written(subject, folder)


CONTRACT = (
    says_its_suffix,
    gives_back_what_it_was_given,
    keeps_maps,
    keeps_any_channels,
    writes_the_same_again,
    is_read_by_threads,
    outlives_its_reader,
    names_damage,
    ignores_global_randomness,
)


def check_shard_format(format: ShardFormat) -> None:
    """The contract of a shard format; raises ``PluginError`` for the first check that fails."""
    hold(CONTRACT, Subject.built(format))
