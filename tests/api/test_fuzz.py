"""Schemathesis at the REST API: whatever it sends, the answers are those that the schema tells of.

It runs in a process of its own, with all of its checks, against a real server: as staff, as a
tenant's user and as nobody. It always sends the same; with --all more of it, and
with KAPSO_TEST_FUZZ=50 that many examples of each request: some minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import cache
from django.core.management import call_command
from django.core.servers.basehttp import WSGIRequestHandler
from django.utils import timezone
from pytest_django.live_server_helper import LiveServer

from kapso_connect.api.urls import ROUTES
from kapso_connect.models import (
    Connection,
    Customer,
    IdempotentRequest,
    Invitation,
    InvitationBatch,
    SetupLink,
    TimelineEvent,
)
from kapso_connect.testing import Sandbox
from tests import ROOT

from ..conftest import THOROUGH
from ..factories import make_connection, make_link, remote_customer
from .support import make_user

pytestmark = [
    pytest.mark.slow,
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.sites.tenant_api"),
]

EXAMPLES = int(os.environ.get("KAPSO_TEST_FUZZ", 5 if THOROUGH else 1))

# Which statuses a request may get that the schema calls right.
CONFIG = """\
hooks = "tests.api.fuzz_hooks"

[generation]
deterministic = true
database = "none"
max-examples = {examples}
# No body may have NUL in a text, and no schema can say so of every text.
allow-x00 = false

[checks]
# No schema can say which ids there are, what these users may do and what is done already.
positive_data_acceptance.expected-statuses = {statuses}
"""

# With another option beside it, the API may refuse one that is right by itself; and what is a
# cursor no schema can say.
EXCEPT = """
[[operations]]
include-operation-id-regex = "(setup_links_create|batches_create|events_list)$"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "403", "404", "409", "422"]

[auth.openapi.basicAuth]
username = "{user}"
password = "x"
"""


def make_things(sandbox: Sandbox, name: str) -> Customer:
    """A customer with two links, a number and a timeline."""
    customer = remote_customer(sandbox, name)
    Customer.objects.filter(pk=customer.pk).update(email=f"{name}@example.com")
    make_link(customer, is_latest=False, status="expired")
    link = make_link(customer, status="used", setup_status="failed", last_error_code="x")
    number = make_connection(customer, setup_link=link)
    now = timezone.now()
    TimelineEvent.objects.create(
        kind="connected",
        source="webhook",
        customer=customer,
        connection=number,
        setup_link=link,
        occurred_at=now,
        delivered_at=now,
    )
    batch = InvitationBatch.objects.create(started_at=now)
    Invitation.objects.create(batch=batch, customer=customer, setup_link=link)
    return customer


@pytest.fixture
def things(sandbox: Sandbox) -> list[Customer]:
    return [make_things(sandbox, name) for name in ("own", "another")]


@pytest.fixture
def attack(live_server: LiveServer, configure: Any, tmp_path: Path, monkeypatch: Any) -> Any:
    """Run Schemathesis on the API of a namespace, as ``user``."""
    # On a connection that is kept, each answer would come 40 ms late.
    monkeypatch.setattr(WSGIRequestHandler, "disable_nagle_algorithm", True)
    rates = dict.fromkeys(("read", "write", "kapso"))
    configure(API_THROTTLE_RATES=rates, PUBLIC_URL=live_server.url)
    cache.clear()

    def run(namespace: str, mount: str, user: str = "") -> None:
        call_command(
            "kapso_openapi", namespace=namespace, format="json", file=tmp_path / "schema.json"
        )
        statuses = ["2xx", "304", "403", "404", "409", "422"] if user else ["401", "403"]
        config = CONFIG.format(examples=EXAMPLES, statuses=statuses)
        (tmp_path / "config.toml").write_text(config + (EXCEPT.format(user=user) if user else ""))
        words = ["--config-file", "config.toml", "run", "schema.json", "--no-color"]
        words += ["--url", f"{live_server.url}{mount}", "--continue-on-failure"]
        if not THOROUGH:
            words += ["--phases", "examples,fuzzing"]
        done = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        operations = sum(len(actions) for _route, _view, actions, *_names in ROUTES)
        assert f"Tested: {operations}" in done.stdout

    return run


def rows() -> list[Any]:
    """All there is, but for the timeline's deliveries."""
    models = (
        Customer,
        SetupLink,
        InvitationBatch,
        Invitation,
        Connection,
        TimelineEvent,
        IdempotentRequest,
    )
    return [list(model._default_manager.order_by("pk").values()) for model in models]


def test_as_staff(things: list[Customer], attack: Any) -> None:
    make_user("staff", "superuser")
    attack("kapso_connect_api", "/api/whatsapp/v1", "staff")
    assert Customer.objects.count() > len(things)
    assert SetupLink.objects.count() > 2 * len(things)


def test_as_a_tenant(things: list[Customer], attack: Any) -> None:
    user = make_user("tenant", is_staff=False, email="own@example.com")
    user.set_password("x")
    user.save()
    own, another = things

    def of(customer: Customer) -> list[Any]:
        names = ("setup_links", "invitations", "connections", "events")
        theirs = [list(getattr(customer, name).order_by("pk").values()) for name in names]
        return [Customer.objects.filter(pk=customer.pk).values().get(), *theirs]

    before = of(own), of(another)
    attack("tenant", "/tenant/v1", "tenant")
    assert of(another) == before[1]
    assert of(own) != before[0]


def test_as_anonymous_user(things: list[Customer], attack: Any) -> None:
    before = rows()
    attack("kapso_connect_api", "/api/whatsapp/v1")
    assert rows() == before
