"""Outages of Kapso's API, in everything that uses it.

Nothing takes longer than its budget, every error is reported, nothing is left half done, and once
the outage is over the same thing works.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from kapso_connect import onboarding
from kapso_connect.exceptions import KapsoError
from kapso_connect.models import Connection, SetupLink, TimelineEvent, WebhookEvent
from kapso_connect.onboarding.numbers import Number
from kapso_connect.testing import Sandbox

from .admin.world import World, messages
from .factories import (
    allow_questions,
    listening,
    make_customer,
    make_link,
    new_number_id,
    remote_customer,
)

pytestmark = pytest.mark.django_db(transaction=True)

BUDGET = 0.6
ALLOWANCE = 3  # seconds for everything but waiting, on a busy machine

OUTAGES: dict[str, dict[str, Any] | None] = {
    "unreachable": None,
    "hangs": {"kind": "hang", "seconds": 20},
    "drips": {"kind": "slow", "seconds": 20},
    "closes": {"kind": "close"},
    "429": {"kind": "status", "status": 429, "retry_after": 30},
    "500": {"kind": "status", "status": 500},
    "503": {"kind": "status", "status": 503, "retry_after": 30},
    "html": {"kind": "html"},
    "blocked": {"kind": "cloudflare"},
    "garbage": {"kind": "garbage"},
    "empty": {"kind": "empty"},
    "redirect": {"kind": "redirect"},
}


@contextmanager
def within_budget() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < BUDGET + ALLOWANCE


ALIKE = {"503", "garbage", "empty"}
"""What the package cannot tell from others: these are in the thorough run only."""


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.slow if name in ALIKE else ()) for name in OUTAGES]
)
def outage(
    request: pytest.FixtureRequest,
    sandbox: Sandbox,
    configure: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """``start()`` and ``stop()`` one kind of outage."""
    monkeypatch.setattr("kapso_connect.sync.SYNC_BUDGET", BUDGET)
    configure(REQUEST_BUDGET=BUDGET, API_BUDGET=BUDGET)
    rule = OUTAGES[request.param]

    class Outage:
        def start(self) -> None:
            if rule is None:
                configure(API_BASE_URL="http://127.0.0.1:9")
            else:
                sandbox.faults(api=[{"match": ".*", **rule}])

        def stop(self) -> None:
            configure(API_BASE_URL=sandbox.url, REQUEST_BUDGET=5, API_BUDGET=30)
            monkeypatch.setattr("kapso_connect.sync.SYNC_BUDGET", 30)
            sandbox.clear_faults()
            allow_questions()

    return Outage()


def link_and_number(sandbox: Sandbox) -> tuple[SetupLink, str]:
    customer = remote_customer(sandbox)
    (number,) = sandbox.state()["phone_numbers"]
    return make_link(customer), number["phone_number_id"]


def success(link: SetupLink, number: str) -> dict[str, str]:
    return {"setup_link_id": link.kapso_id, "status": "completed", "phone_number_id": number}


def test_create_link(outage: Any) -> None:
    customer = make_customer(kapso_id=None)
    outage.start()
    with listening() as heard, within_budget(), pytest.raises(KapsoError) as caught:
        onboarding.create_setup_link(customer)
    assert str(caught.value)
    assert not SetupLink.objects.exists()
    assert not TimelineEvent.objects.exists()
    outage.stop()
    with listening() as heard:
        assert onboarding.create_setup_link(customer).is_usable
    assert heard.names() == ["setup_link_created"]


def test_success_redirect(outage: Any, sandbox: Sandbox, client: Client) -> None:
    link, number = link_and_number(sandbox)
    client.get("/whatsapp/success/")  # the first page loads modules
    outage.start()
    with within_budget():
        response = client.get("/whatsapp/success/", success(link, number))
    assert response.status_code == 202
    assert response["Refresh"] == "5"
    assert "Almost there" in response.content.decode()
    assert not Connection.objects.exists()
    outage.stop()
    with listening() as heard:
        response = client.get("/whatsapp/success/", success(link, number))
    assert response.status_code == 200
    assert heard.names() == ["whatsapp_connected"]


def test_sync(outage: Any, sandbox: Sandbox) -> None:
    _link, number = link_and_number(sandbox)
    known = onboarding.connect(make_customer(), Number(new_number_id()), source="webhook")
    WebhookEvent.objects.create(
        idempotency_key="stored",
        event="whatsapp.phone_number.disconnected",
        is_name_signed=True,
        payload={
            "phone_number_id": known.phone_number_id,
            "occurred_at": timezone.now().isoformat(),
        },
    )
    outage.start()
    with listening() as heard, within_budget(), pytest.raises(CommandError) as caught:
        call_command("kapso_sync", stdout=StringIO())
    assert caught.value.returncode == 1
    assert str(caught.value)
    # What needs no API was done, and no number was disconnected.
    assert heard.names() == ["whatsapp_disconnected"]
    assert Connection.objects.count() == 1
    outage.stop()
    with listening() as heard:
        call_command("kapso_sync", stdout=StringIO())
    assert heard.names() == ["whatsapp_connected"]
    assert Connection.objects.get(phone_number_id=number).is_connected


@pytest.mark.parametrize("what", ["create link", "sync"])
def test_short_rate_limit_is_waited_for(what: str, sandbox: Sandbox) -> None:
    link, _number = link_and_number(sandbox)
    sandbox.faults(
        api=[{"match": ".*", "kind": "status", "status": 429, "retry_after": 1, "times": 1}]
    )
    started = time.monotonic()
    if what == "create link":
        assert onboarding.create_setup_link(link.customer).is_usable
    else:
        call_command("kapso_sync", stdout=StringIO())
        assert Connection.objects.get().is_connected
    assert 1 <= time.monotonic() - started < 5


def test_refusal_in_front_of_kapso_is_never_said_to_be_about_the_key(
    sandbox: Sandbox, configure: Any, client: Client
) -> None:
    world = World(sandbox, client)
    world.allow_all()
    configure(REQUEST_BUDGET=BUDGET, API_BUDGET=0.2, PUBLIC_URL="https://site.example")
    sandbox.faults(api=[{"kind": "cloudflare"}])
    refresh = f"/api/whatsapp/v1/connections/{world.number.pk}/refresh/"
    texts = [
        client.post(refresh, content_type="application/json").json()["message"],
        messages(world.post("health")),
    ]
    for command in ("kapso_webhook", "kapso_sync"):
        with pytest.raises(CommandError) as caught:
            call_command(command, stdout=StringIO())
        texts.append(str(caught.value))
    for text in texts:
        assert "in front of Kapso refused this server's request" in text
        assert "API_KEY" not in text
