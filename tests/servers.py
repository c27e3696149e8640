"""Servers on loopback that hand out files, and fail in every way that servers do."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KINDS = (
    "500", "503", "403", "404", "416", "429", "reset", "reset at once", "short", "stall", "stall at once", "flip",
    "swap", "total", "range", "no ranges", "long", "redirect", "loop", "empty", "trickle",
)  # fmt: skip


@dataclass
class Plan:
    """What goes wrong: ``fault(path, number of this request)`` names a kind, or "" for a right answer."""

    fault: Callable[[str, int], str] = lambda path, number: ""
    requests: list[str] = field(default_factory=list)  # every path that was asked for
    faults: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)  # ends what stalls
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, path: str) -> str:
        with self.lock:
            self.requests.append(path)
            kind = self.fault(path, len(self.requests) - 1)
            if kind:
                self.faults.append(kind)
            return kind


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_PUT(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        sent = self.rfile.read(length)
        # What makes buckets and files is not the loader's, and goes through unharmed.
        path = self.path.partition("?")[0]
        kind = self.server.plan.next(path) if self.command == "GET" and not self.path.startswith("/moved") else ""
        asked = {name: value for name, value in self.headers.items() if kind != "no ranges" or name != "Range"}
        status, headers, data = self.server.origin(self.command, self.path.removeprefix("/moved"), asked, sent)
        if kind == "reset at once":
            return self._reset()
        if kind == "stall at once":
            self._stall()
            return None
        if kind.isdigit():
            status, data, headers = int(kind), b"<Error><Code>Injected</Code></Error>", {"Content-Type": "text/xml"}
            headers |= {"Retry-After": "0"} if kind in ("503", "429") else {}
        if kind == "redirect":
            status, headers, data = 302, {"Location": f"/moved{self.path}"}, b""
        if kind == "loop":
            status, headers, data = 302, {"Location": self.path}, b""
        if kind == "swap" and len(data) > 1:
            data = data[::-1]
        if kind == "flip" and data:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :]
        if kind == "empty":
            data = b""
        if kind == "long":
            data += bytes(1 << 16)
        if kind == "total" and "Content-Range" in headers:
            headers["Content-Range"] = headers["Content-Range"].partition("/")[0] + f"/{len(data) + 12345}"
        elif kind == "total":
            data = data[: len(data) // 2]
        if kind == "range" and "Content-Range" in headers:
            headers["Content-Range"] = re.sub(
                r"\d+-", lambda found: f"{int(found[0][:-1]) + 1}-", headers["Content-Range"]
            )
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if body:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not body:
            return None
        with contextlib.suppress(OSError):
            half = data[: len(data) // 2]
            if kind == "reset":
                self.wfile.write(half)
                self.wfile.flush()
                return self._reset()
            if kind == "short":
                self.wfile.write(half)
                self.close_connection = True
                return None
            if kind == "stall":
                self.wfile.write(half)
                self._stall()
                return None
            if kind == "trickle":
                for byte in data:
                    self.wfile.write(bytes([byte]))
                    if self.server.plan.over.wait(0.05):
                        break
                return None
            self.wfile.write(data)
        return None

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _stall(self) -> None:
        self.close_connection = True
        self.server.plan.over.wait(60)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, origin: Origin, plan: Plan) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.origin, self.plan = origin, plan

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # the client hung up


Answer = tuple[int, dict[str, str], bytes]
Origin = Callable[[str, str, dict[str, str], bytes], Answer]


def of_folder(folder: Path) -> Origin:
    """Files of a folder, with ranges."""

    def origin(method: str, path: str, headers: dict[str, str], sent: bytes) -> Answer:
        file = folder / path.partition("?")[0].lstrip("/")
        if not file.is_file():
            return 404, {}, b"not here"
        data = file.read_bytes()
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("Range", ""))
        if found is None:
            about = {"Content-Length": str(len(data))} if method == "HEAD" else {}
            return 200, {"Accept-Ranges": "bytes", **about}, data
        start, stop = int(found[1]), int(found[2] or len(data) - 1) + 1
        if start >= len(data):
            return 416, {"Content-Range": f"bytes */{len(data)}"}, b""
        stop = min(stop, len(data))
        return 206, {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}, data[start:stop]

    return origin


def of_server(host: str, port: int) -> Origin:
    """What another server answers."""

    def origin(method: str, path: str, headers: dict[str, str], sent: bytes) -> Answer:
        connection = http.client.HTTPConnection(host, port, timeout=20)
        try:
            kept = {name: value for name, value in headers.items() if name.lower() not in ("connection",)}
            connection.request(method, path, body=sent or None, headers=kept)
            answer = connection.getresponse()
            data = answer.read()
            dropped = {"transfer-encoding", "connection", "server", "date"}
            dropped |= set() if method == "HEAD" else {"content-length"}
            return answer.status, {n: v for n, v in answer.getheaders() if n.lower() not in dropped}, data
        finally:
            connection.close()

    return origin


@contextmanager
def serving(origin: Origin, plan: Plan | None = None) -> Iterator[tuple[str, Plan]]:
    """The URL of a server, and its plan."""
    plan = plan or Plan()
    server = _Server(origin, plan)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", plan
    finally:
        plan.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
