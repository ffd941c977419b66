"""An HTTP server that answers each request as a test wants, also as no server should.

::

    with FaultyServer() as server:
        server.will(broken_off(), answer(200, {"data": []}))

A reply is a function that gets the open connection and the request. The last reply of the script
answers all further requests. ``server.requests`` and ``server.connections`` record what arrived.
"""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, urlsplit


@dataclass(frozen=True)
class Received:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes = field(repr=False)

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """What a reply writes to. ``wait`` ends early when the server stops."""

    def __init__(self, sock: socket.socket, stopping: threading.Event) -> None:
        self.send = sock.sendall
        self._socket = sock
        self._stopping = stopping

    def wait(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise ConnectionError("the server stops")

    def reset(self) -> None:
        """Close so that the other side gets a reset instead of an end."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


Reply = Callable[[Connection, Received], bool]  # True keeps the connection open


def answer(
    status: int = 200,
    body: Any = b"",
    headers: dict[str, str] | None = None,
    *,
    content_type: str = "application/json",
    keep_alive: bool = True,
) -> Reply:
    """Answer correctly; a body that is not bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Content-Type": content_type, "Content-Length": str(len(content)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return raw(f"HTTP/1.1 {status} Any\r\n{head}\r\n".encode() + content, keep_alive=keep_alive)


def raw(content: bytes, *, keep_alive: bool = False) -> Reply:
    """Send these bytes unchanged."""

    def reply(connection: Connection, request: Received) -> bool:
        connection.send(content)
        return keep_alive

    return reply


def dripped(first: bytes, content: bytes, seconds: float = 0.02) -> Reply:
    """Send the first bytes of an answer at once, and the content byte by byte."""

    def reply(connection: Connection, request: Received) -> bool:
        connection.send(first)
        for byte in content:
            connection.wait(seconds)
            connection.send(bytes([byte]))
        return False

    return reply


def hung(first: bytes = b"", after: float = 0) -> Reply:
    """Send the first bytes of an answer, after some seconds, and then nothing more."""

    def reply(connection: Connection, request: Received) -> bool:
        connection.wait(after)
        connection.send(first)
        connection.wait(60)
        return False

    return reply


def broken_off(first: bytes = b"") -> Reply:
    """Send the first bytes of an answer, and close the connection."""
    return raw(first)


def reset() -> Reply:
    """Read the request and reset the connection."""

    def reply(connection: Connection, request: Received) -> bool:
        connection.reset()
        return False

    return reply


class Limited:
    """Answer 200 at most ``limit`` times in each ``seconds``, as Kapso does in each minute, and 429
    to all other requests. ``refused`` is how many these were."""

    def __init__(self, limit: int, seconds: float, body: Callable[[], Any]) -> None:
        self.limit = limit
        self.seconds = seconds
        self.body = body
        self.refused = 0
        self._used = self._period = 0
        self._lock = threading.Lock()

    def __call__(self, connection: Connection, request: Received) -> bool:
        with self._lock:
            period = int(time.monotonic() / self.seconds)
            if period != self._period:
                self._period, self._used = period, 0
            self._used += 1
            left = self.limit - self._used
            self.refused += left < 0
        counts = {
            "X-RateLimit-Limit": str(self.limit),
            "X-RateLimit-Remaining": str(max(left, 0)),
        }
        if left < 0:
            error = {"error": "Rate limit exceeded"}
            return answer(429, error, {**counts, "Retry-After": "60"})(connection, request)
        return answer(200, self.body(), counts)(connection, request)


class FaultyServer:
    """Runs in a thread, on a free port of 127.0.0.1, inside a ``with`` block."""

    def __init__(self, wrap: Callable[[socket.socket], socket.socket] | None = None) -> None:
        self.requests: list[Received] = []
        self.connections = 0
        self.stopping = threading.Event()
        self._script: list[Reply] = []
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        server = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                server._serve(self.request, wrap)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def will(self, *replies: Reply) -> None:
        """Replace the script."""
        with self._lock:
            self._script = list(replies)

    def __enter__(self) -> FaultyServer:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        self._server.server_close()  # waits for the handlers
        self._thread.join()

    def _serve(
        self, plain: socket.socket, wrap: Callable[[socket.socket], socket.socket] | None
    ) -> None:
        with self._lock:
            self.connections += 1
            self._open.add(plain)
        sock = plain
        try:
            with contextlib.suppress(OSError):  # the client may close the connection at any moment
                sock = wrap(plain) if wrap else plain
                with sock.makefile("rb") as stream:
                    while (request := _read(stream)) and self._reply(sock, request):
                        pass
        finally:
            with self._lock:
                self._open.discard(plain)
            sock.close()

    def _reply(self, sock: socket.socket, request: Received) -> bool:
        with self._lock:
            self.requests.append(request)
            reply = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        return reply(Connection(sock, self.stopping), request)


def _read(stream: BinaryIO) -> Received | None:
    line = stream.readline().decode("latin-1").split()
    if len(line) != 3:
        return None
    headers: dict[str, str] = {}
    while name_value := stream.readline().decode("latin-1").rstrip("\r\n"):
        name, _, value = name_value.partition(":")
        headers[name.strip().lower()] = value.strip()
    body = stream.read(int(headers.get("content-length", 0)))
    return Received(line[0], line[1], headers, body)
