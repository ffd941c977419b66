"""Fuzzing: generated requests against webhook and redirects, and bodies of a gigabyte.

    python -m tests.proofs.fuzz [--requests 200000] [--database sqlite] [--body-mb 1024] …

Valid deliveries and redirects are mutated: values, structure, bytes, encodings, headers, methods,
parameters. They go through the site's WSGI handler, in this process. Fails where an answer is 500
or above, where a row changes without a valid signature (a redirect may only record that a link
failed or has an unconfirmed number), and where memory grows. Then a huge body goes to a real
gunicorn, with Content-Length and chunked, and must cost it next to nothing.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import random
import select
import socket
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_from_bytes

from kapso_connect.webhooks.signature import is_valid, sign
from tests.faulty_server import FaultyServer, answer
from tests.proofs.support import (
    DATABASES,
    SECRET,
    WEBHOOK,
    Request,
    Site,
    environment,
    new_database,
)

SUCCESS = "/whatsapp/success/"
FAILED = "/whatsapp/failed/"
LINK = "known-link"
NUMBERS = [str(10**14 + n) for n in range(50)]
CUSTOMERS = [str(uuid.UUID(int=n)) for n in range(20)]
PHONE_EVENTS = [
    f"whatsapp.phone_number.{name}"
    for name in ("created", "deleted", "offboarded", "disconnected", "reconnected")
]
ACCOUNT_EVENTS = [
    f"whatsapp.account.{name}" for name in ("disabled", "restricted", "reinstated", "violation")
]
OTHER_EVENTS = ["workflow.execution.failed", "whatsapp.config.created", "x", ""]
MAX_GROWTH_MB = 64


class Fuzzer:
    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.junk: list[Callable[[], Any]] = [
            lambda: None,
            lambda: True,
            lambda: 0,
            lambda: -1,
            lambda: self.chance.choice([2**31, 2**63, 2**64, 10**400, -(10**30)]),
            lambda: self.chance.choice([1e308, float("inf"), float("nan"), 0.1]),
            lambda: "",
            lambda: " ",
            lambda: "x" * self.chance.choice([64, 65, 255, 256, 10_000]),
            lambda: "9" * self.chance.choice([1, 64, 65, 10_000]),
            lambda: "".join(chr(self.chance.randrange(0x250)) for _ in range(20)),
            lambda: self.chance.choice(["\x00", "a\x00b", "\ud800", "\U0001f4a9", "\u202e", "١٢٣"]),
            lambda: "' OR 1=1 --",
            lambda: "<script>alert(1)</script>",
            lambda: "../../etc/passwd%00{{7*7}}",
            lambda: self.chance.choice(["2026-13-45", "9999-12-31T23:59:59-14:00", "now", "0"]),
            lambda: [],
            lambda: {},
            lambda: [self.value() for _ in range(3)],
            lambda: {self.word(): self.value() for _ in range(3)},
            self.deep,
        ]

    def value(self) -> Any:
        return self.chance.choice(self.junk)()

    def word(self) -> str:
        words = ["id", "event", "type", "data", "customer", "token", "batch", "\x00", "é", ""]
        return self.chance.choice(words)

    def deep(self) -> Any:
        value: Any = "x"
        for _ in range(self.chance.choice([5, 23, 24, 25, 33, 200])):
            value = [value] if self.chance.random() < 0.5 else {"d": value}
        return value

    def payload(self) -> tuple[str, Any]:
        chance = self.chance
        event = chance.choice(chance.choice([PHONE_EVENTS, ACCOUNT_EVENTS, OTHER_EVENTS]))
        customer = chance.choice(CUSTOMERS)
        body: dict[str, Any] = {"project": {"id": "p"}, "event": event, "id": str(chance.random())}
        if chance.random() < 0.5:
            body["occurred_at"] = f"2026-0{chance.randint(1, 9)}-01T00:00:00Z"
        if event in ACCOUNT_EVENTS:
            body |= {
                "business_account_id": chance.choice(["waba-1", "waba-2"]),
                "phone_numbers": [{"id": number} for number in chance.sample(NUMBERS, 3)],
                "restrictions": [{"type": "x", "expires_at": None}],
                "violation": {"type": "y"},
            }
        else:
            body |= {
                "phone_number_id": chance.choice(NUMBERS),
                "customer": {"id": customer, "external_id": f"ours-{customer[-2:]}"},
                "connection_type": chance.choice(["coexistence", "dedicated"]),
                "source": {"business_account_id": "waba-1"},
                "disconnection": {"reason": "r", "initiated_by": None},
            }
        form = chance.randrange(5)
        if form == 0:
            return event, {"event": event, "data": body}
        if form == 1:
            return event, {"type": event, "batch": True, "data": [body, copy.deepcopy(body)]}
        if form == 2:
            return event, [body]
        return event, body

    def mutated(self, value: Any) -> Any:
        """Change one thing in ``value``, which is parsed JSON."""
        spots: list[tuple[Any, Any]] = []

        def collect(part: Any) -> None:
            keys: Any = part if isinstance(part, dict) else range(len(part))
            for key in keys:
                spots.append((part, key))
                if isinstance(part[key], (dict, list)):
                    collect(part[key])

        collect(value)
        if not spots:
            return self.value()
        part, key = self.chance.choice(spots)
        how = self.chance.randrange(4)
        if how == 0:
            del part[key]
        elif how == 1 and isinstance(part, dict):
            part[self.word()] = self.value()
        else:
            part[key] = self.value()
        return value

    def body(self) -> tuple[str, bytes]:
        chance = self.chance
        event, payload = self.payload()
        for _ in range(chance.choice([0, 0, 1, 1, 2, 5])):
            if isinstance(payload, (dict, list)):
                payload = self.mutated(payload)
        text = json.dumps(payload, ensure_ascii=chance.random() < 0.7)
        encoding = chance.choices(["utf-8", "utf-16", "latin-1"], [30, 1, 1])[0]
        body = text.encode(encoding, "surrogatepass" if encoding == "utf-8" else "replace")
        if chance.random() < 0.15:
            body = self.broken(body)
        return event, body

    def broken(self, body: bytes) -> bytes:
        chance = self.chance
        at = chance.randrange(len(body) + 1)
        return chance.choice(
            [
                body[:at],
                body[:at] + chance.randbytes(3) + body[at:],
                body[:at] + body[at + 1 :],
                b"\xef\xbb\xbf" + body,
                b"[" * 100_000,
                b'{"a":' * 50_000,
                b"9" * 10_000,
                b'{"phone_number_id": "1", "phone_number_id": 2}',
                b"",
                chance.randbytes(64),
                b'"' + b"x" * (1024 * 1024),
            ]
        )

    def webhook(self) -> dict[str, Any]:
        chance = self.chance
        event, body = self.body()
        headers = {"X_WEBHOOK_EVENT": event, "X_IDEMPOTENCY_KEY": str(chance.randrange(10**9))}
        signature = sign(body, SECRET)
        headers["X_WEBHOOK_SIGNATURE"] = chance.choices(
            [signature, signature.upper(), sign(body, "other"), signature[:-1], "é" * 64, "\x00"],
            [12, 1, 3, 1, 1, 1],
        )[0]
        for name in list(headers):
            if chance.random() < 0.03:
                del headers[name]
        if chance.random() < 0.1:
            names = ["X_IDEMPOTENCY_KEY", "X_WEBHOOK_EVENT", "X_WEBHOOK_BATCH", "X_BATCH_SIZE"]
            names += ["HOST", "CONTENT_ENCODING", "ACCEPT", "COOKIE", "ACCEPT_LANGUAGE", "ORIGIN"]
            headers[chance.choice(names)] = self.header()
        method = chance.choices(["POST", "GET", "PUT", "HEAD", "OPTIONS", "X"], [95, 1, 1, 1, 1, 1])
        made = self.environ(method[0], WEBHOOK, self.query(), body, headers)
        if chance.random() < 0.03:
            made["CONTENT_LENGTH"] = chance.choice(["", "-1", "junk", "0", str(2**40), "1" * 5000])
        if chance.random() < 0.05:
            types = [
                "",
                "text/plain",
                "multipart/form-data; boundary=",
                "application/json; charset=x",
            ]
            made["CONTENT_TYPE"] = chance.choice([*types, self.header()])
        return made

    def header(self) -> str:
        values = ["", "true", "1", "x" * 10_000, "é\xff", "..", "a,b;q=2", "-1", "\t"]
        return self.chance.choice(values)

    def query(self) -> str:
        if self.chance.random() < 0.97:
            return ""
        return self.chance.choice(["a=b", "%", "%ff=%00", "&" * 2000, "setup_link_id=1"])

    def redirect(self) -> dict[str, Any]:
        chance = self.chance
        link = LINK if chance.random() < 0.5 else str(uuid.UUID(int=chance.getrandbits(128)))
        if chance.random() < 0.6:
            path = SUCCESS
            parameters = [
                ("setup_link_id", link),
                ("status", "completed"),
                ("phone_number_id", chance.choice(NUMBERS)),
                ("business_account_id", "waba-1"),
                ("display_phone_number", "+15551234567"),
            ]
        else:
            path = FAILED
            codes = ["facebook_auth_failed", "link_expired", "new_code", "x" * 64]
            parameters = [("setup_link_id", link), ("error_code", chance.choice(codes))]
        for _ in range(chance.choice([0, 1, 1, 2])):
            index = chance.randrange(len(parameters))
            name, value = parameters[index]
            how = chance.randrange(4)
            if how == 0:
                del parameters[index]
            elif how == 1:
                parameters.append((name, value))
            elif how == 2:
                parameters[index] = (name, self.text())
            else:
                parameters.append((self.text(), self.text()))
            if not parameters:
                break
        query = "&".join(f"{self.escape(name)}={self.escape(value)}" for name, value in parameters)
        if chance.random() < 0.05:
            query = chance.choice([query[:-1] + "%", query.replace("=", "[]="), "&" * 500, "?" * 9])
        if chance.random() < 0.01:
            query += "&a=b" * 2000
        method = chance.choices(["GET", "POST", "HEAD", "DELETE"], [94, 2, 2, 2])[0]
        return self.environ(method, path, query, b"", {"ACCEPT_LANGUAGE": "es"})

    def text(self) -> str:
        value = self.value()
        return value if isinstance(value, str) else str(value)[:2000]

    def escape(self, text: str) -> str:
        if self.chance.random() < 0.02:
            return quote_from_bytes(self.chance.randbytes(5))
        return quote(text.encode("utf-8", "surrogatepass"))

    def environ(
        self, method: str, path: str, query: str, body: bytes, headers: dict[str, str]
    ) -> dict[str, Any]:
        return {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "SERVER_NAME": "site.example",
            "SERVER_PORT": "443",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "https",
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": False,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "proof.body": body,
            **{f"HTTP_{name}": value for name, value in headers.items()},
        }

    def request(self) -> dict[str, Any]:
        return self.webhook() if self.chance.random() < 0.7 else self.redirect()


def is_signed(environ: dict[str, Any]) -> bool:
    """Return whether the part of the body that the site may read has a valid signature."""
    try:
        length = int(environ["CONTENT_LENGTH"] or 0)
    except ValueError:
        length = 0
    body = environ["proof.body"][: max(length, 0)]
    signature = environ.get("HTTP_X_WEBHOOK_SIGNATURE", "")
    return environ["REQUEST_METHOD"] == "POST" and is_valid(body, signature, [SECRET])


def memory_mb(pid: int | str = "self", field: str = "VmRSS") -> float:
    """Return a process's memory in MB: VmRSS is the current, VmHWM the peak memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(field)


@contextmanager
def writes() -> Iterator[list[str]]:
    """Yield a list of the statements that change rows during the block."""
    from django.db import connection

    statements: list[str] = []

    def watch(run: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith(("INSERT", "UPDATE", "DELETE", "REPLACE")):
            statements.append(sql.replace("`", '"'))
        return run(sql, params, many, context)

    with connection.execute_wrapper(watch):
        yield statements


def may_write(environ: dict[str, Any], sql: str) -> bool:
    """Return whether a request may run a statement that changes rows."""
    if environ["PATH_INFO"] == WEBHOOK:
        return is_signed(environ)
    redirect_writes = (
        'UPDATE "kapso_connect_setuplink"',
        'UPDATE "kapso_connect_customer" SET "status"',  # being confirmed
        'INSERT INTO "kapso_connect_timelineevent"',
    )
    return LINK in environ["QUERY_STRING"] and sql.startswith(redirect_writes)


def fuzz(requests: int, seed: int) -> None:
    """Send requests through the WSGI handler. Django is set up, and the tables exist."""
    from django.core.handlers.wsgi import WSGIHandler
    from django.utils import timezone

    from kapso_connect.models import Connection, Customer, SetupLink, WebhookEvent

    handler = WSGIHandler()
    fuzzer = Fuzzer(seed)
    customer = Customer.objects.create(name="x", kapso_id=CUSTOMERS[0])
    customer.latest_setup_link = SetupLink.objects.create(
        customer=customer, kapso_id=LINK, url="https://x.example", created_at=timezone.now()
    )
    customer.save()
    statuses: Counter[tuple[str, int]] = Counter()
    received = signed = 0
    before, started = 0.0, time.monotonic()
    for n in range(requests):
        if n == requests // 5:
            before = memory_mb()
        environ = fuzzer.request()
        sent_statuses: list[int] = []

        def start_response(
            status: str, headers: Any, sent_statuses: list[int] = sent_statuses
        ) -> None:
            sent_statuses.append(int(status.split()[0]))

        with writes() as written:
            response = handler(environ, start_response)  # type: ignore[arg-type]
            content = b"".join(response)
            response.close()  # type: ignore[attr-defined]
        (status,) = sent_statuses
        what = {key: environ[key] for key in sorted(environ) if not key.startswith("wsgi")}
        assert status < 500, (status, what)
        assert all(may_write(environ, sql) for sql in written), (written, what)
        statuses[environ["PATH_INFO"], status] += 1
        if environ["PATH_INFO"] == WEBHOOK:
            valid = is_signed(environ)
            signed += valid
            assert valid or status != 200, what
            if status == 200:
                received += json.loads(content)["received"]
    growth = memory_mb() - before
    seconds = time.monotonic() - started
    print(f"{requests} requests in {seconds:.0f} s ({requests / seconds:.0f}/s), {signed} signed")
    for (path, status), count in sorted(statuses.items()):
        print(f"  {path} {status}: {count}")
    inbox = WebhookEvent.objects.count()
    print(f"  {inbox} stored, {Connection.objects.count()} connections")
    print(f"  memory: {before:.0f} MB after a fifth, {growth:+.1f} MB since")
    assert inbox == received
    assert growth < MAX_GROWTH_MB


def post_huge(port: int, size: int, *, chunked: bool) -> int:
    """Post ``size`` bytes, or as many as the site accepts, and return the status."""
    piece = b"x" * 65536
    how = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    head = f"POST {WEBHOOK} HTTP/1.1\r\nHost: site\r\nX-Webhook-Signature: {'0' * 64}\r\n{how}\r\n"
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        sock.sendall(head.encode() + b"\r\n")
        try:
            while sent < size and not select.select([sock], [], [], 0)[0]:
                sock.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                sent += len(piece)
            if chunked and sent >= size:
                sock.sendall(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass
        status = int(sock.recv(64).split()[1])
    print(f"  {how}: answer {status} after {sent / 2**20:.0f} MB")
    return status


def huge_bodies(database_url: str, megabytes: int) -> None:
    """Post huge bodies to gunicorn; the memory of its worker must not grow."""
    # One worker: it is known to have imported what a webhook needs when it is measured.
    with Site(database_url, workers=1, threads=4) as site:
        site.rows()
        site.send_at_once([Request("POST", WEBHOOK)] * 8)
        (worker,) = site.worker_pids()
        before = memory_mb(worker, "VmHWM")
        print(f"{megabytes} MB to gunicorn:")
        for chunked in (False, True):
            assert post_huge(site.port, megabytes * 2**20, chunked=chunked) == 413
        growth = memory_mb(worker, "VmHWM") - before
    print(f"  peak memory of a worker: {growth:+.1f} MB")
    assert growth < 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--database", choices=DATABASES, default="sqlite")
    parser.add_argument("--body-mb", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        new_database(options.database, Path(folder)) as url,
        FaultyServer() as api,
    ):
        api.will(answer(404, {"error": "Not found"}))
        os.environ.update(
            environment(
                url,
                KAPSO_PROOF_API_URL=api.url,
                KAPSO_PROOF_SIGNAL="whatsapp_connected",
                KAPSO_PROOF_FAST_SQLITE="1" if options.database == "sqlite" else "",
                KAPSO_PROOF_CONN_MAX_AGE="600",
            )
        )
        import logging

        import django
        from django.db import connections

        django.setup()
        logging.disable(logging.ERROR)
        try:
            fuzz(options.requests, options.seed)
        finally:
            connections.close_all()
        huge_bodies(url, options.body_mb)


if __name__ == "__main__":
    main()
