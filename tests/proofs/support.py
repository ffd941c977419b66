"""For the proofs: a database of each kind, and a real site that uses it, over real HTTP."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlencode, urlsplit

import pytest

from kapso_connect.testing import webhook_headers

T = TypeVar("T")

SECRET = "test-webhook-secret"
WEBHOOK = "/whatsapp/webhook/"
DATABASES = ["sqlite", "postgres", "mariadb"]
SERVERS = {
    "postgres": os.environ.get(
        "KAPSO_TEST_POSTGRES_URL", "postgres://postgres@127.0.0.1:5432/postgres"
    ),
    "mariadb": os.environ.get("KAPSO_TEST_MARIADB_URL", "mysql://root@127.0.0.1:3306/mysql"),
}


@contextlib.contextmanager
def new_database(kind: str, folder: Path) -> Iterator[str]:
    """Yield the URL of a new, empty database with the site's tables; drop it afterwards."""
    with empty_database(kind, folder) as url:
        migrate(url)
        yield url


@contextlib.contextmanager
def empty_database(kind: str, folder: Path) -> Iterator[str]:
    """Yield the URL of a new database without tables; drop it afterwards.

    The default run keeps to SQLite: with KAPSO_TEST_SERVICES=1 a server that cannot be reached
    fails the test.
    """
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'proof.sqlite3'}"
        return
    if os.environ.get("KAPSO_TEST_SERVICES") != "1":
        pytest.skip(f"on {kind} with KAPSO_TEST_SERVICES=1")
    driver = {"postgres": "psycopg", "mariadb": "MySQLdb"}[kind]
    if importlib.util.find_spec(driver) is None:
        # The extra "dev" brings none for MariaDB: it needs a compiler and MariaDB's headers.
        missing(f"{driver} is not installed.")
    name = f"kapso_proof_{uuid.uuid4().hex[:12]}"
    try:
        execute(kind, f"CREATE DATABASE {name}" + UTF8[kind])
    except Exception as error:
        missing(f"no {kind} at {SERVERS[kind]}: {error}")
    try:
        yield SERVERS[kind].rpartition("/")[0] + f"/{name}"
    finally:
        execute(kind, f"DROP DATABASE {name}" + FORCE[kind])


def missing(reason: str) -> NoReturn:
    """Skip a test that cannot run here; with KAPSO_TEST_SERVICES=1, fail it."""
    if os.environ.get("KAPSO_TEST_SERVICES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


UTF8 = {"postgres": "", "mariadb": " CHARACTER SET utf8mb4"}
FORCE = {"postgres": " WITH (FORCE)", "mariadb": ""}


def execute(kind: str, sql: str) -> None:
    url = urlsplit(SERVERS[kind])
    if kind == "postgres":
        import psycopg

        with psycopg.connect(SERVERS[kind], autocommit=True, connect_timeout=5) as connection:
            connection.execute(sql.encode())
        return
    import MySQLdb

    with contextlib.closing(
        MySQLdb.connect(
            host=url.hostname or "127.0.0.1",
            port=url.port or 3306,
            user=url.username or "root",
            passwd=url.password or "",
            connect_timeout=5,
        )
    ) as connection:
        connection.cursor().execute(sql)


def environment(database_url: str, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.sites.proof_site.settings",
        "KAPSO_TEST_DATABASE_URL": database_url,
        **more,
    }


def migrate(database_url: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "django", "migrate", "--run-syncdb", "--verbosity", "0"],
        env=environment(database_url),
        check=True,
    )


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = field(repr=False)
    seconds: float = 0.0
    location: str = ""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def delivery(payload: Any, *, event: str, key: str | None = None) -> Request:
    """The request with which Kapso would deliver ``payload``."""
    body = json.dumps(payload).encode()
    headers = webhook_headers(body, SECRET, event=event, idempotency_key=key)
    return Request("POST", WEBHOOK, body, headers)


def form(target: str, **fields: str) -> Request:
    content_type = {"Content-Type": "application/x-www-form-urlencoded"}
    return Request("POST", target, urlencode(fields).encode(), content_type)


class Site:
    """The proof site under gunicorn, its log in a file."""

    def __init__(
        self, database_url: str, *, workers: int = 2, threads: int = 25, **variables: str
    ) -> None:
        """With one thread, a worker accepts a connection only when it has nothing else to do."""
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self._socket.getsockname()[1]
        fd = self._socket.fileno()
        with tempfile.NamedTemporaryFile("a", prefix="proof-site-", delete=False) as log:
            self._log = Path(log.name)
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "gunicorn", "tests.sites.proof_site.wsgi"),
                    *("--bind", f"fd://{fd}", "--log-level", "warning", "--timeout", "60"),
                    *("--worker-class", "gthread" if threads > 1 else "sync"),
                    *("--workers", str(workers), "--threads", str(threads)),
                ],
                env=environment(database_url, **variables),
                pass_fds=[fd],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Site:
        try:
            assert self.send(Request("GET", "/proof/rows/")).status == 200, self.output()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._socket.close()
        self._log.unlink(missing_ok=True)

    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def worker_pids(self) -> list[int]:
        task = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in task.read_text().split()]

    def connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.connect()
        return connection

    def send(
        self, request: Request, connection: http.client.HTTPConnection | None = None
    ) -> Answer:
        with contextlib.closing(connection or self.connect()) as connection:
            started = time.monotonic()
            connection.request(request.method, request.target, request.body, request.headers)
            response = connection.getresponse()
            refresh = response.getheader("Refresh", "").partition("url=")[2]
            location = response.getheader("Location", refresh)
            body = response.read()
            return Answer(response.status, body, time.monotonic() - started, location)

    def send_at_once(self, requests: Sequence[Request]) -> list[Answer]:
        """Send all at the same instant, each on a connection of its own; answers in order."""

        def sender(request: Request) -> Callable[[], Answer]:
            connection = self.connect()

            def send() -> Answer:
                return self.send(request, connection)

            return send

        return at_once([sender(request) for request in requests])

    def reset(self) -> None:
        assert self.send(Request("POST", "/proof/reset/")).status == 200

    def rows(self) -> Rows:
        rows = Rows(**self.send(Request("GET", "/proof/rows/")).json)
        # At any moment: a status is committed together with what it follows from.
        assert rows.wrong_statuses == []
        return rows

    def sync(self) -> dict[str, Any]:
        report: dict[str, Any] = self.send(Request("POST", "/proof/sync/")).json
        return report


def at_once(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Call all at the same instant, each in a thread; return what they return, in order."""
    barrier = threading.Barrier(len(calls))
    results: dict[int, T] = {}

    def run(index: int, call: Callable[[], T]) -> None:
        barrier.wait()
        results[index] = call()

    threads = [threading.Thread(target=run, args=(index, call)) for index, call in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[index] for index in range(len(calls))]


@dataclass(frozen=True)
class Rows:
    """What the site's tables hold; see ``proof_site.views.all_rows``."""

    customers: list[str]
    connections: dict[str, str]
    links: list[dict[str, str]]
    inbox: dict[str, int]
    inbox_errors: list[str]
    timeline: list[tuple[int, str, str, str | None]]
    undelivered: list[tuple[str, str]]
    received: list[tuple[str, int, str]]
    wrong_statuses: list[int]
    keys: int = 0

    def kinds(self) -> Counter[str]:
        """How many rows of each kind the timeline has, deliveries left out."""
        return Counter(kind for _, kind, *_ in self.timeline if kind != "webhook_received")

    def signals(self) -> Counter[str]:
        return Counter(name for name, _, _ in self.received if name != "webhook_received")

    def assert_each_signal_received_once(self) -> None:
        """Every event of the timeline that has a signal was sent to the receivers, once."""
        assert self.undelivered == []
        received = Counter(event for _, event, _ in self.received)
        without_signal = {"setup_link_revoked", "setup_link_expired", "setup_link_opened"}
        assert received == {pk: 1 for pk, kind, *_ in self.timeline if kind not in without_signal}
