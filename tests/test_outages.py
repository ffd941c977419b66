"""Kapso's API in every kind of trouble, through everything that asks it.

Nobody waits longer than the budget, everybody is told what is the matter, nothing half-done stays,
and once the trouble is over the same thing works.
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

from kapso_connect import onboarding
from kapso_connect.exceptions import KapsoError
from kapso_connect.models import Connection, SetupLink, TimelineEvent, WebhookEvent
from kapso_connect.onboarding.numbers import Number
from kapso_connect.testing import Sandbox

from .factories import listening, make_customer, make_link, new_number_id, remote_customer

pytestmark = pytest.mark.django_db(transaction=True)

BUDGET = 0.6
ALLOWANCE = 3  # for what is not waiting, on a busy machine

TROUBLES: dict[str, dict[str, Any] | None] = {
    "down": None,
    "hangs": {"kind": "hang", "seconds": 20},
    "drips": {"kind": "slow", "seconds": 20},
    "closes": {"kind": "close"},
    "429": {"kind": "status", "status": 429, "retry_after": 30},
    "500": {"kind": "status", "status": 500},
    "503": {"kind": "status", "status": 503, "retry_after": 30},
    "html": {"kind": "html"},
    "garbage": {"kind": "garbage"},
    "empty": {"kind": "empty"},
    "elsewhere": {"kind": "redirect"},
}


@contextmanager
def within_budget() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < BUDGET + ALLOWANCE


@pytest.fixture(params=TROUBLES)
def trouble(request: pytest.FixtureRequest, sandbox: Sandbox, settings: Any, monkeypatch) -> Any:
    """``start`` and ``stop`` one of the troubles."""
    monkeypatch.setattr("kapso_connect.sync.BUDGET", BUDGET)
    well = {**settings.KAPSO_CONNECT, "REQUEST_BUDGET": BUDGET, "API_BUDGET": BUDGET}
    settings.KAPSO_CONNECT = well
    rule = TROUBLES[request.param]

    class Trouble:
        def start(self) -> None:
            if rule is None:
                settings.KAPSO_CONNECT = {**well, "API_BASE_URL": "http://127.0.0.1:9"}
            else:
                sandbox.faults(api=[{"match": ".*", **rule}])

        def stop(self) -> None:
            settings.KAPSO_CONNECT = {**well, "REQUEST_BUDGET": 5, "API_BUDGET": 30}
            monkeypatch.setattr("kapso_connect.sync.BUDGET", 30)
            sandbox.clear_faults()

    return Trouble()


def claimable(sandbox: Sandbox) -> tuple[SetupLink, str]:
    customer = remote_customer(sandbox)
    (number,) = sandbox.state()["phone_numbers"]
    return make_link(customer), number["phone_number_id"]


def success(link: SetupLink, number: str) -> dict[str, str]:
    return {"setup_link_id": link.kapso_id, "status": "completed", "phone_number_id": number}


def test_create_link(trouble: Any) -> None:
    customer = make_customer(kapso_id=None)
    trouble.start()
    with listening() as heard, within_budget(), pytest.raises(KapsoError) as caught:
        onboarding.create_setup_link(customer)
    assert str(caught.value)
    assert not SetupLink.objects.exists()
    assert not TimelineEvent.objects.exists()
    trouble.stop()
    with listening() as heard:
        assert onboarding.create_setup_link(customer).is_usable
    assert heard.names() == ["setup_link_created"]


def test_success_redirect(trouble: Any, sandbox: Sandbox, client: Client) -> None:
    link, number = claimable(sandbox)
    client.get("/whatsapp/success/")  # what is loaded with the first page is no waiting
    trouble.start()
    with within_budget():
        response = client.get("/whatsapp/success/", success(link, number))
    assert response.status_code == 202
    assert response["Refresh"] == "5"
    assert "Almost there" in response.content.decode()
    assert not Connection.objects.exists()
    trouble.stop()
    with listening() as heard:
        response = client.get("/whatsapp/success/", success(link, number))
    assert response.status_code == 200
    assert heard.names() == ["whatsapp_connected"]


def test_sync(trouble: Any, sandbox: Sandbox) -> None:
    _link, number = claimable(sandbox)
    known = onboarding.connect(make_customer(), Number(new_number_id()), source="webhook")
    WebhookEvent.objects.create(
        idempotency_key="stored",
        event="whatsapp.phone_number.deleted",
        payload={"phone_number_id": known.phone_number_id},
    )
    trouble.start()
    with listening() as heard, within_budget(), pytest.raises(CommandError) as caught:
        call_command("kapso_sync", stdout=StringIO())
    assert caught.value.returncode == 1
    assert str(caught.value)
    # What needs no API was done, and nobody was disconnected because the API said nothing.
    assert heard.names() == ["whatsapp_disconnected"]
    assert Connection.objects.count() == 1
    trouble.stop()
    with listening() as heard:
        call_command("kapso_sync", stdout=StringIO())
    assert heard.names() == ["whatsapp_connected"]
    assert Connection.objects.get(phone_number_id=number).is_connected


@pytest.mark.parametrize("what", ["create link", "redirect", "sync"])
def test_a_short_429_is_waited_out(what: str, sandbox: Sandbox, client: Client) -> None:
    link, number = claimable(sandbox)
    sandbox.faults(
        api=[{"match": ".*", "kind": "status", "status": 429, "retry_after": 1, "times": 1}]
    )
    started = time.monotonic()
    if what == "create link":
        assert onboarding.create_setup_link(link.customer).is_usable
    elif what == "redirect":
        assert client.get("/whatsapp/success/", success(link, number)).status_code == 200
    else:
        call_command("kapso_sync", stdout=StringIO())
        assert Connection.objects.get().is_connected
    assert 1 <= time.monotonic() - started < 5
