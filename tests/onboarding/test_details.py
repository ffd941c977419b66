"""What receivers know of a number that only a webhook has told of."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest
from django.db import transaction
from django.db.models.signals import post_save
from django.utils import timezone

from kapso_connect import outbox, sync
from kapso_connect.models import Connection, Customer, TimelineEvent, WebhookEvent
from kapso_connect.onboarding import details
from kapso_connect.onboarding.numbers import Number, connect
from kapso_connect.testing import Sandbox
from kapso_connect.webhooks import inbox

from ..factories import (
    CREATED,
    listening,
    make_customer,
    new_number_id,
    payload_for,
    post,
    queue_without_worker,
    remote_customer,
)
from ..faulty_server import FaultyServer, hung
from .support import during_request, events

pytestmark = pytest.mark.django_db(transaction=True)

GET_NUMBER = "GET /platform/v1/whatsapp/phone_numbers/"


@pytest.fixture
def customer(sandbox: Sandbox) -> Customer:
    return remote_customer(sandbox)


@pytest.fixture
def number(customer: Customer, sandbox: Sandbox) -> dict[str, Any]:
    """The customer's number, as the API shows it. No webhook has told of it yet."""
    (number,) = sandbox.state()["phone_numbers"]
    return dict(number)


def created(customer: Customer, number: dict[str, Any]) -> dict[str, Any]:
    return payload_for(customer, number["phone_number_id"])


def check_details(connection: Connection, number: dict[str, Any]) -> None:
    assert connection.display_phone_number == number["display_phone_number"]
    assert connection.verified_name == number["verified_name"]
    assert connection.connection_type == (
        "coexistence" if number["is_coexistence"] else "dedicated"
    )


def test_receivers_get_the_details(customer: Customer, number: dict[str, Any]) -> None:
    with listening() as heard:
        post(created(customer, number))
    assert heard.names() == ["whatsapp_connected"]
    check_details(heard[0][1]["connection"], number)
    assert heard[0][1]["event"].connection == heard[0][1]["connection"]
    check_details(Connection.objects.get(), number)
    assert events("details_received") == []  # the event of the connection has them


def test_details_without_receivers(customer: Customer, number: dict[str, Any]) -> None:
    post(created(customer, number))
    check_details(Connection.objects.get(), number)
    assert events("details_received") == []  # nobody was told without them


def test_worker_asks_where_a_queue_runs(
    customer: Customer, number: dict[str, Any], sandbox: Sandbox
) -> None:
    with listening() as heard, queue_without_worker():
        post(created(customer, number))
        assert sandbox.requests() == []
        (queued,) = outbox.deliver_event.get_backend().results
        queued.task.call(*queued.args)
    check_details(heard.only("whatsapp_connected")["connection"], number)


def test_worker_asks_for_details_without_receivers(
    customer: Customer, number: dict[str, Any], sandbox: Sandbox
) -> None:
    with queue_without_worker():
        post(created(customer, number))
        assert sandbox.requests() == []
        (queued,) = details.request_details.get_backend().results
        queued.task.call(*queued.args)
    check_details(Connection.objects.get(), number)


def test_number_that_the_api_does_not_show_yet_is_asked_for_again(
    customer: Customer, number: dict[str, Any], sandbox: Sandbox
) -> None:
    sandbox.faults(api=[{"match": GET_NUMBER, "kind": "status", "status": 404, "times": 1}])
    with listening() as heard:
        post(created(customer, number))
    check_details(heard.only("whatsapp_connected")["connection"], number)


@pytest.mark.parametrize("status", [401, 429, 503])
def test_details_follow_with_an_entry_in_the_timeline(
    customer: Customer, number: dict[str, Any], sandbox: Sandbox, status: int
) -> None:
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": status}])
    with listening() as heard:
        post(created(customer, number))
        connection = heard.only("whatsapp_connected")["connection"]
        assert (connection.display_phone_number, connection.connection_type) == ("", "")
        sandbox.clear_faults()
        for _ in range(2):
            sync.run()
    assert heard.names() == ["whatsapp_connected"]
    check_details(Connection.objects.get(), number)
    (entry,) = events("details_received")
    assert entry.customer == customer
    assert entry.data["display_phone_number"] == number["display_phone_number"]


def test_details_follow_by_a_queue_that_can_defer(
    customer: Customer, number: dict[str, Any], sandbox: Sandbox
) -> None:
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 401}])
    with listening(), queue_without_worker():
        post(created(customer, number))
        backend = outbox.deliver_event.get_backend()
        (first,) = backend.results
        first.task.call(*first.args)
        sandbox.clear_faults()
        _, second = backend.results
        assert second.task.run_after is not None
        second.task.call(*second.args)
    check_details(Connection.objects.get(), number)
    assert len(events("details_received")) == 1


def test_all_numbers_of_a_delivery_share_one_budget(
    configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "DETAILS_BUDGET", 0.3)
    payloads = [payload_for(make_customer(), new_number_id()) for _ in range(3)]
    with FaultyServer() as api, listening() as heard:
        api.will(hung())
        configure(API_BASE_URL=api.url)
        started = time.monotonic()
        post({"type": CREATED, "batch": True, "data": payloads})
        assert 0.3 < time.monotonic() - started < 0.8
    assert heard.names() == ["whatsapp_connected"] * 3


@pytest.mark.parametrize(("attempts", "asks"), [(1, True), (2, False)])
def test_processes_that_die_while_asking_do_not_keep_the_signal(
    customer: Customer, number: dict[str, Any], sandbox: Sandbox, attempts: int, asks: bool
) -> None:
    with listening() as heard, queue_without_worker():
        post(created(customer, number))
        TimelineEvent.objects.update(attempts=attempts, next_attempt_at=timezone.now())
        (queued,) = outbox.deliver_event.get_backend().results
        queued.task.call(*queued.args)
    assert bool(heard.only("whatsapp_connected")["connection"].display_phone_number) is asks


def test_redirect_that_is_faster_than_the_signal_adds_them(
    customer: Customer, number: dict[str, Any], sandbox: Sandbox
) -> None:
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 401}])
    known = Number(number["phone_number_id"], display_phone_number="+1 415-555-0100")

    def redirect_is_confirmed(sender: Any, instance: Connection, created: bool, **_: Any) -> None:
        if created:
            confirmed = partial(
                connect, customer, known, source="redirect", asked_at=timezone.now()
            )
            transaction.on_commit(confirmed)

    post_save.connect(redirect_is_confirmed, sender=Connection)
    try:
        with listening() as heard:
            post(created(customer, number))
    finally:
        post_save.disconnect(redirect_is_confirmed, sender=Connection)
    shown = heard.only("whatsapp_connected")["connection"].display_phone_number
    assert shown == known.display_phone_number
    assert events("details_received") == []
    assert sandbox.requests() == []


def test_number_that_has_moved_keeps_what_the_webhook_said(
    customer: Customer, number: dict[str, Any], sandbox: Sandbox
) -> None:
    with listening() as heard:
        post(payload_for(make_customer(), number["phone_number_id"]))
    assert heard.only("whatsapp_connected")["connection"].display_phone_number == ""


def test_number_that_is_disconnected_meanwhile_is_not_reopened(
    customer: Customer, number: dict[str, Any]
) -> None:
    with queue_without_worker(), listening() as heard:
        post(created(customer, number))
        (queued,) = outbox.deliver_event.get_backend().results
        Connection.objects.update(status="disconnected")
        queued.task.call(*queued.args)
    assert heard.only("whatsapp_connected")["connection"].display_phone_number == ""
    assert not Connection.objects.get().is_connected


def test_receivers_see_what_happened_while_the_api_was_asked(
    customer: Customer, number: dict[str, Any], sandbox: Sandbox
) -> None:
    with listening() as heard:
        during_request(
            sandbox,
            GET_NUMBER,
            lambda: Connection.objects.update(status="disconnected"),
            lambda: post(created(customer, number)),
        )
    assert not heard.only("whatsapp_connected")["connection"].is_connected


def test_signal_is_sent_once_whatever_asking_raises(
    customer: Customer, number: dict[str, Any], configure: Any
) -> None:
    configure(API_KEY="")
    with listening() as heard:
        post(created(customer, number))
    assert heard.names() == ["whatsapp_connected"]
    assert WebhookEvent.objects.get().status == "processed"
    assert TimelineEvent.objects.get(kind="connected").delivered_at is not None
