"""Webhooks from request to response, beside peers: python -m tests.benchmarks.webhook

All views are in one site (``peer_site``) on one database, and each gets what its own sender would
post: those written by hand and ours a number that was connected, dj-stripe the event of its own
that it keeps without asking Stripe (``payment_method.detached``), django-anymail a ``delivered`` of
Mailgun's.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import django

from kapso_connect.testing import webhook_headers

from ..sites.peer_site import WEBHOOK_SECRET
from .measuring import OURS, Row, Subject, finish, in_turn, is_installed, parser
from .routing import own_databases

FLOOR = "by hand, the shortest view"
FEWEST = "by hand, the fewest statements"
INVITED = f"{OURS}, invited, with a receiver"
STRIPE = "dj-stripe"
ANYMAIL = "django-anymail"
ENDPOINT = uuid.UUID(int=1)
CREATED = "whatsapp.phone_number.created"
FIRST, AGAIN, UNKNOWN = "first delivery", "the same again", "unknown event"

REMARKS = {
    FLOOR: "the floor: no customers, no timeline, no signals",
    FEWEST: "the same, with one upsert",
    OURS: "a customer that is known",
    INVITED: "also ends the link, calls the receiver, records that it had it",
    ANYMAIL: "stores nothing",
}


@dataclass(frozen=True)
class Post:
    path: str
    body: bytes
    headers: Mapping[str, str]


Sender = Callable[[int, str], Post]
"""Makes the delivery with this number, of this kind."""


def by_kapso(path: str, customers: Sequence[str], prefix: str) -> Sender:
    def make(number: int, kind: str) -> Post:
        event = "workflow.execution.handoff" if kind == UNKNOWN else CREATED
        customer = customers[number % len(customers)]
        payload = {
            "phone_number_id": f"{prefix}{number:013}",
            "project": {"id": "990e8400-e29b-41d4-a716-446655440004"},
            "customer": {"id": customer},
        }
        body = json.dumps(payload).encode()
        key = f"{prefix}-{kind.partition(' ')[0]}-{number}"
        headers = webhook_headers(body, WEBHOOK_SECRET, event=event, idempotency_key=key)
        return Post(path, body, headers)

    return make


def by_stripe(number: int, kind: str) -> Post:
    prefix = kind.partition(" ")[0]
    method = {
        "id": f"pm_{prefix}{number:020}",
        "object": "payment_method",
        "billing_details": {"address": None, "email": None, "name": None, "phone": None},
        "created": 1780000000,
        "customer": None,
        "livemode": False,
        "metadata": {},
        "type": "link",
        "link": {},
    }
    event = {
        "id": f"evt_{prefix}{number:020}",
        "object": "event",
        "api_version": "2020-08-27",
        "created": 1780000000,
        "data": {"object": method},
        "livemode": False,
        "pending_webhooks": 1,
        "request": {"id": None, "idempotency_key": None},
        "type": "something.unknown" if kind == UNKNOWN else "payment_method.detached",
    }
    body = json.dumps(event).encode()
    now = int(time.time())
    signed = hmac.new(WEBHOOK_SECRET.encode(), b"%d." % now + body, hashlib.sha256).hexdigest()
    headers = {"Content-Type": "application/json", "Stripe-Signature": f"t={now},v1={signed}"}
    return Post(f"/stripe/webhook/{ENDPOINT}/", body, headers)


def by_mailgun(number: int, kind: str) -> Post:
    now, token = str(int(time.time())), f"{number:050}"
    signed = hmac.new(WEBHOOK_SECRET.encode(), (now + token).encode(), hashlib.sha256).hexdigest()
    data = {
        "event": "something_unknown" if kind == UNKNOWN else "delivered",
        "id": f"id-{number}",
        "timestamp": 1780000000.5,
        "recipient": "ada@example.com",
        "message": {"headers": {"message-id": f"{number}@example.com"}},
        "tags": [],
        "user-variables": {},
    }
    signature = {"timestamp": now, "token": token, "signature": signed}
    body = json.dumps({"signature": signature, "event-data": data}).encode()
    return Post("/anymail/mailgun/tracking/", body, {"Content-Type": "application/json"})


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    options = parser("webhook").parse_args(arguments)
    rounds, size = (2, 4) if options.quick else (40, 50)
    with own_databases(options.database_url, "kapso_bench_webhook") as [url]:
        os.environ["KAPSO_BENCH_DATABASE"] = url
        os.environ["DJANGO_SETTINGS_MODULE"] = "tests.sites.peer_site.settings"
        django.setup()
        from django.db import connections

        try:
            senders = prepare()
            rows = in_process(senders, rounds, size)
            if not url.startswith("sqlite"):
                rows += over_http(senders, *((2, 8) if options.quick else (15, 200)))
        finally:
            connections.close_all()
    return finish(rows, options.json)


def prepare() -> dict[str, Sender]:
    """Make the tables and what the views look for; return who sends to which view."""
    from django.conf import settings
    from django.core.management import call_command

    from kapso_connect.models import Customer

    call_command("migrate", run_syncdb=True, verbosity=0)
    known = [str(uuid.UUID(int=number)) for number in range(100)]
    Customer.objects.bulk_create(Customer(name=kapso_id, kapso_id=kapso_id) for kapso_id in known)
    invited = [str(uuid.UUID(int=2**64 + number)) for number in range(20_000)]
    invite(invited)
    senders = {
        FLOOR: by_kapso("/shortest/", known, "1"),
        FEWEST: by_kapso("/fewest-statements/", known, "4"),
        OURS: by_kapso("/whatsapp/webhook/", known, "2"),
        INVITED: by_kapso("/whatsapp/webhook/", invited, "3"),
    }
    if is_installed("djstripe"):
        from djstripe.models import Account, APIKey, WebhookEndpoint

        # With its account known, dj-stripe need not ask Stripe whose key it is.
        account = Account.objects.create(id="acct_1", livemode=False)
        APIKey.objects.create(
            id="key_1",
            type="secret",
            secret=settings.STRIPE_TEST_SECRET_KEY,
            livemode=False,
            djstripe_owner_account=account,
        )
        WebhookEndpoint.objects.create(
            djstripe_owner_account=account,
            id="we_1",
            djstripe_uuid=ENDPOINT,
            secret=WEBHOOK_SECRET,
            url="https://testserver/",
            enabled_events=["*"],
            livemode=False,
        )
        senders[STRIPE] = by_stripe
    if is_installed("anymail"):
        senders[ANYMAIL] = by_mailgun
    return senders


def invite(kapso_ids: Sequence[str]) -> None:
    """Give each of these customers a link that works."""
    from django.db.models import F, OuterRef, Subquery

    from kapso_connect.models import Customer, OnboardingStatus, SetupLink

    Customer.objects.bulk_create(
        (Customer(name=kapso_id, kapso_id=kapso_id) for kapso_id in kapso_ids), batch_size=1000
    )
    customers = Customer.objects.filter(kapso_id__in=kapso_ids)
    SetupLink.objects.bulk_create(
        (
            SetupLink(
                customer=customer,
                kapso_id=f"link-{customer.kapso_id}",
                url="https://setup.example/",
            )
            for customer in customers
        ),
        batch_size=1000,
    )
    links = SetupLink.objects.filter(customer=OuterRef("pk"))
    customers.update(
        status=OnboardingStatus.INVITED,
        status_changed_at=F("created_at"),
        latest_setup_link=Subquery(links.values("pk")[:1]),
    )


class Deliveries:
    """Deliveries of one sender, each time new ones: numbered from ``first`` on."""

    def __init__(self, make: Sender, first: int = 1) -> None:
        self.make = make
        self.next = first

    def take(self, kind: str, size: int) -> list[Post]:
        """Return ``size`` of this kind; the same again are one more, the first of them."""
        numbers = range(self.next, self.next + size)
        self.next += size
        if kind == AGAIN:
            return [self.make(numbers[0], FIRST)] * (size + 1)
        return [self.make(number, kind) for number in numbers]


def receive(**kwargs: Any) -> None:
    """The receiver that a site would have, without what it does."""


@contextmanager
def listening() -> Iterator[None]:
    from kapso_connect.signals import whatsapp_connected

    whatsapp_connected.connect(receive)
    try:
        yield
    finally:
        whatsapp_connected.disconnect(receive)


def measure(
    where: str,
    senders: Mapping[str, Deliveries],
    answer: Callable[[Sequence[Post]], None],
    rounds: int,
    size: int,
    count: Callable[[Callable[[], None]], int] | None = None,
) -> Iterator[Row]:
    """``answer`` lets all of the deliveries be answered; ``count`` counts statements meanwhile."""

    def prepared(who: str, kind: str) -> Callable[[], None]:
        posts = senders[who].take(kind, size)
        if kind == AGAIN:
            answer([posts.pop()])

        def do() -> None:
            with listening() if who == INVITED else nullcontext():
                answer(posts)

        return do

    def turn(who: str, kind: str) -> float:
        do = prepared(who, kind)
        started = time.perf_counter()
        do()
        return (time.perf_counter() - started) / size

    for kind in (FIRST, AGAIN, UNKNOWN):
        subjects: dict[str, Subject] = {}
        facts: dict[str, dict[str, Any]] = {}
        for who in senders:
            if who in {FEWEST, INVITED} and kind != FIRST:
                continue
            subjects[who] = partial(turn, who, kind)
            facts[who] = {"remark": REMARKS.get(who, "")}
            if count:
                turn(who, kind)
                facts[who]["queries"] = round(count(prepared(who, kind)) / size)
        yield from in_turn(f"{where}: {kind}", subjects, rounds=rounds, base=FLOOR, facts=facts)


# In process


def in_process(senders: Mapping[str, Sender], rounds: int, size: int) -> list[Row]:
    from ..sites.peer_site.wsgi import application

    def answer(posts: Sequence[Post]) -> None:
        for post in posts:
            call(application, post)

    deliveries = {who: Deliveries(make) for who, make in senders.items()}
    return list(measure("Webhook in process", deliveries, answer, rounds, size, queries))


def queries(do: Callable[[], None]) -> int:
    """Return how many statements it costs, those that begin and end transactions too."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    with CaptureQueriesContext(connection) as captured:
        do()
    return len(captured)


def call(application: Any, post: Post) -> None:
    """Do what a WSGI server does with a request, without a socket. Raises for anything but 200."""
    environ = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": post.path,
        "QUERY_STRING": "",
        "SERVER_NAME": "testserver",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "CONTENT_LENGTH": str(len(post.body)),
        "CONTENT_TYPE": "application/json",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(post.body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in post.headers.items():
        if name != "Content-Type":
            environ[f"HTTP_{name.upper().replace('-', '_')}"] = value
    statuses: list[str] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> None:
        statuses.append(status)

    response = application(environ, start_response)
    try:
        body = b"".join(response)
    finally:
        response.close()
    assert statuses[0].startswith("200"), (statuses, body)


# Over HTTP

CONNECTIONS = 4


def over_http(senders: Mapping[str, Sender], rounds: int, size: int) -> list[Row]:
    """To gunicorn with two workers, over connections that stay open."""
    deliveries = {
        who: Deliveries(make, 1_000_000) for who, make in senders.items() if who != INVITED
    }
    where = f"Webhook over HTTP, gunicorn, 2 workers, {CONNECTIONS} connections"
    with serving() as port, ThreadPoolExecutor(CONNECTIONS) as pool:

        def answer(posts: Sequence[Post]) -> None:
            parts = [posts[index::CONNECTIONS] for index in range(CONNECTIONS)]
            list(pool.map(partial(send, port), parts))

        return list(measure(where, deliveries, answer, rounds, size))


def send(port: int, posts: Sequence[Post]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for post in posts:
        connection.request("POST", post.path, post.body, dict(post.headers))
        response = connection.getresponse()
        body = response.read()
        assert response.status == 200, (post.path, response.status, body)
    connection.close()


@contextmanager
def serving() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        fd = listener.fileno()
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "tests.sites.peer_site.wsgi"),
                *("--bind", f"fd://{fd}", "--log-level", "warning", "--workers", "2"),
                *("--worker-class", "gthread", "--threads", str(CONNECTIONS)),
            ],
            pass_fds=[fd],
        )
        try:
            yield listener.getsockname()[1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


if __name__ == "__main__":
    main(sys.argv[1:])
