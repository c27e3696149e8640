"""The bytes of a file that is not on this machine: in order, in pieces, and again from where they broke off.

Each protocol is fsspec's. Over HTTP the body is read as it comes, with limits of its own, as fsspec would take
whatever a server sends; elsewhere ranges are asked for. A piece that does not come in time is a failure like others.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import itertools
import random
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

from mae_pipe.data.address import EXTRAS, WEB, Address, without_keys
from mae_pipe.errors import DataError
from mae_pipe.wording import counted

T = TypeVar("T")
LOOK = 0.2  # seconds between looks at whether to stop
RETRIED = (408, 425, 429)  # of the answers of 400 and up; and all from 500 on


@dataclass(frozen=True)
class Patience:
    """How long one tries.

    Attributes:
        piece: bytes that must come within ``stall`` seconds.
        attempts: in a row, without a piece in between.
        refusals: so many of them may be answers that will hardly change, such as 404 and 403.
        first, most: seconds between two attempts are random, up to ``first`` times two to the failures, up to ``most``.
    """

    piece: int = 4 << 20
    stall: float = 60.0
    attempts: int = 8
    refusals: int = 4
    first: float = 0.5
    most: float = 30.0


PATIENCE = Patience()


class Unreachable(DataError):
    """A file that stays out of reach, or is not what it should be."""


class Abandoned(Exception):
    """Nobody wants the file any more."""


class _Failed(Exception):
    """An attempt failed; another may not. ``wait``: seconds that the server asks for."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


class _Refused(_Failed):
    """The answer will hardly be another one next time."""


@dataclass(frozen=True)
class Fetched:
    """What came."""

    size: int
    sha256: str


def fetch(
    address: Address,
    write: Callable[[bytes], object],
    *,
    size: int | None = None,
    limit: int,
    stop: threading.Event,
    patience: Patience | None = None,
) -> Fetched:
    """Hand all bytes of a file to ``write``, in order.

    Args:
        size: bytes that it must have; None: not known.
        limit: bytes that it may have.
        stop: ends it, with ``Abandoned``.

    Raises:
        Unreachable: it stays so, or is not of that size.
    """
    patience = patience or PATIENCE
    done, failures, refusals, digest = 0, 0, 0, hashlib.sha256()
    for attempt in itertools.count(1):
        try:
            with closing(_pieces(address, done, size, patience, stop)) as pieces:
                for piece in pieces:
                    done += len(piece)
                    if done > (limit if size is None else size):
                        raise _Refused(f"more than {limit if size is None else size:,} bytes came")
                    write(piece)
                    digest.update(piece)
                    failures = 0
            if size is not None and done < size:
                raise _Failed(f"it ended after {done:,} of {size:,} bytes")
            return Fetched(done, digest.hexdigest())
        except _Failed as failure:
            failures, refusals = failures + 1, refusals + isinstance(failure, _Refused)
            if (
                done > (limit if size is None else size)
                or refusals == patience.refusals
                or failures >= patience.attempts
            ):
                raise Unreachable(
                    f"{address} cannot be fetched: {failure} ({counted(attempt, 'attempt')}); "
                    "check the address, your access to it and the connection, then give the same command again"
                ) from failure
            pause = random.uniform(0, min(patience.most, patience.first * 2**failures))  # noqa: S311 (no secret)
            if stop.wait(max(pause, min(failure.wait, patience.most))):
                raise Abandoned from None
    raise AssertionError("never here")


def _pieces(
    address: Address, start: int, size: int | None, patience: Patience, stop: threading.Event
) -> Generator[bytes, None, None]:
    """From ``start`` on, in one attempt; what goes wrong is ``_Failed``."""
    system = filesystem(address)
    try:
        if address.protocol in WEB:
            yield from _streamed(system, address, start, size, patience, stop)
        else:
            yield from _ranges(system, address, start, size, patience, stop)
    except (_Failed, Abandoned, DataError):
        raise
    except FileNotFoundError:
        raise _Refused("there is no such file") from None
    except PermissionError as error:
        raise _Refused(f"access is denied ({_first_line(error)})") from error
    except TimeoutError:
        raise _Failed(f"nothing came for {patience.stall:g} s") from None
    except OSError as error:
        kind = _Refused if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EINVAL) else _Failed
        raise kind(_first_line(error)) from error
    except Exception as error:  # each library has its own
        raise _Failed(_first_line(error)) from error


def filesystem(address: Address) -> Any:
    """fsspec's for a protocol; raises ``DataError`` where a library is missing."""
    import fsspec

    options: dict[str, Any] = {}
    if address.protocol in WEB:
        options = {"client_kwargs": {"trust_env": True}}  # proxies, .netrc
    if address.protocol == "s3":  # we try again ourselves
        options = {"config_kwargs": {"retries": {"max_attempts": 1}, "connect_timeout": 20, "read_timeout": 60}}
    try:
        system = fsspec.filesystem(address.protocol, **options)
    except (ImportError, ValueError) as error:
        extra = EXTRAS.get(address.protocol, "")
        how = f"pip install 'mae-pipe[{extra}]'" if extra else "pip install --upgrade fsspec aiohttp huggingface_hub"
        raise DataError(f"{address.protocol}:// needs another library ({_first_line(error)}); {how}") from error
    if address.protocol == "s3":
        system.retries = 1
    return system


def _ranges(
    system: Any, address: Address, start: int, size: int | None, patience: Patience, stop: threading.Event
) -> Generator[bytes, None, None]:
    path = system._strip_protocol(address.url)
    if size is None:
        system.invalidate_cache()
        size = int(_call(system, "info", patience, stop, path)["size"])
    for at in range(start, size, patience.piece):
        end = min(at + patience.piece, size)
        piece: bytes = _call(system, "cat_file", patience, stop, path, start=at, end=end)
        if len(piece) != end - at:
            kind = _Refused if len(piece) > end - at or (at + len(piece) < size and not piece) else _Failed
            raise kind(f"{len(piece):,} bytes came instead of {end - at:,} at byte {at:,}")
        yield piece


def _call(system: Any, name: str, patience: Patience, stop: threading.Event, *given: Any, **named: Any) -> Any:
    """A method of a file system, in time."""
    if getattr(system, "async_impl", False):
        return _waited(system.loop, getattr(system, f"_{name}")(*given, **named), patience.stall, stop)
    answer: list[Any] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            answer.append(getattr(system, name)(*given, **named))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work, daemon=True, name="fetch")  # one that hangs is left behind
    thread.start()
    deadline = time.monotonic() + patience.stall
    while thread.is_alive():
        thread.join(LOOK)
        _check(stop, deadline)
    if failure:
        raise failure[0]
    return answer[0]


def _waited(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T], seconds: float, stop: threading.Event) -> T:
    """What a coroutine gives, in time."""
    future = asyncio.run_coroutine_threadsafe(work, loop)
    deadline = time.monotonic() + seconds
    try:
        while True:
            try:
                return future.result(LOOK)
            except TimeoutError:
                if future.done():
                    raise
                _check(stop, deadline)
    finally:
        future.cancel()


def _check(stop: threading.Event, deadline: float) -> None:
    if stop.is_set():
        raise Abandoned
    if time.monotonic() > deadline:
        raise TimeoutError


def _streamed(
    system: Any, address: Address, start: int, size: int | None, patience: Patience, stop: threading.Event
) -> Generator[bytes, None, None]:
    """One request from ``start`` to the end, whose body is read as it comes."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})

    async def begin() -> Any:
        session = await system.set_session()
        return await session.get(system.encode_url(address.url), headers=headers, timeout=None)

    async def piece(response: Any, wanted: int) -> bytes:
        parts: list[bytes] = []
        while wanted and (part := await response.content.read(wanted)):
            parts.append(part)
            wanted -= len(part)
        return b"".join(parts)

    response = _waited(system.loop, begin(), patience.stall, stop)
    try:
        skip = _skipped(response, start, size)
        for at in itertools.count(start - skip, patience.piece):
            data = _waited(system.loop, piece(response, patience.piece), patience.stall, stop)
            if (useful := data[max(0, start - at) :]) or not data:
                if not data:
                    return
                yield useful
    finally:
        system.loop.call_soon_threadsafe(response.close)


def _skipped(response: Any, start: int, size: int | None) -> int:
    """Bytes before ``start`` that come all the same, from a server that knows no ranges."""
    status = response.status
    if status >= 400:
        kind = _Refused if status < 500 and status not in RETRIED else _Failed
        after = response.headers.get("Retry-After", "")
        raise kind(
            f"the server answers {status} {response.reason or ''}".rstrip(), float(after) if after.isdigit() else 0
        )
    length = response.headers.get("Content-Length", "")
    total: int | None = None
    if status == 206:
        place, _, whole = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        if not place.startswith(f"{start}-"):
            raise _Failed(f"the server answers with the range {place!r} to one from byte {start:,} on")
        total = int(whole) if whole.isdigit() else None
    elif status == 200:
        total = int(length) if length.isdigit() else None
    else:
        raise _Failed(f"the server answers {status} {response.reason or ''}".rstrip())
    if size is not None and total is not None and total != size:
        raise _Refused(f"it has {total:,} bytes instead of {size:,}")
    return 0 if status == 206 else start


def _first_line(error: BaseException) -> str:
    return without_keys((str(error).strip() or type(error).__name__).splitlines()[0])[:200]
