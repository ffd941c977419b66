"""Customers of other sites in the same Kapso project: ``ADOPT_UNKNOWN_CUSTOMERS``."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from kapso_connect import onboarding, sync
from kapso_connect.exceptions import NumberMoved
from kapso_connect.models import Connection, Customer, WebhookEvent
from kapso_connect.testing import Sandbox
from kapso_connect.webhooks import inbox

from ..factories import CREATED, DELETED, listening, make_customer, payload_for, post
from .support import events, last_delivery, reload

pytestmark = pytest.mark.django_db(transaction=True)

NUMBER = "whatsapp.phone_number."
DISCONNECTED, RECONNECTED = NUMBER + "disconnected", NUMBER + "reconnected"


@pytest.fixture(autouse=True)
def not_adopting(configure: Any) -> None:
    configure(ADOPT_UNKNOWN_CUSTOMERS=False)


def foreign_payload(number: str = "1", **more: Any) -> dict[str, Any]:
    customer = Customer(kapso_id="theirs", external_customer_id="other-site-1")
    return payload_for(customer, number, **more)


def is_ignored_with_the_reason(event: WebhookEvent) -> bool:
    return event.status == "ignored" and "ADOPT_UNKNOWN_CUSTOMERS is off" in event.last_error


@pytest.mark.parametrize("event", [CREATED, DELETED, DISCONNECTED, RECONNECTED])
def test_event_about_an_unknown_customer_is_ignored_with_a_reason(
    sandbox: Sandbox, event: str
) -> None:
    with listening() as heard, listening("webhook_received") as received:
        post(foreign_payload(event=event, occurred_at=timezone.now().isoformat()), event=event)
    assert is_ignored_with_the_reason(last_delivery())
    assert (heard, len(received)) == ([], 1)
    assert not Customer.objects.exists()
    assert not Connection.objects.exists()
    assert sandbox.requests() == []  # such events are everyday in a shared project


@pytest.mark.parametrize("field", ["kapso_id", "external_customer_id"])
def test_customer_of_this_site_is_known_by_either_id(field: str) -> None:
    known = make_customer(kapso_id="id-1", external_customer_id="crm-1")
    customer = Customer(kapso_id="id-1", external_customer_id="crm-1")
    setattr(customer, field, "something-else")
    post(payload_for(customer, "1"))
    assert Connection.objects.connected().get().customer == known


def test_number_of_the_project_itself_is_ignored_as_such(sandbox: Sandbox) -> None:
    post({"phone_number_id": "1"}, event=CREATED)
    assert last_delivery().last_error.startswith("The number belongs to the Kapso project itself")


def test_number_that_has_no_customer_any_more_did_not_move(
    connection: Connection, sandbox: Sandbox
) -> None:
    sandbox.patch_number(connection.phone_number_id, customer_id=None)
    sync.run()
    assert reload(connection).disconnect_reason == "no_customer"


def move_to_another_site(connection: Connection, sandbox: Sandbox) -> str:
    """Move the number to an unknown customer, and return Kapso's id of that one."""
    other = sandbox.add_number(external_customer_id="other-site-1")
    sandbox.patch_number(connection.phone_number_id, customer_id=other["customer_id"])
    return str(other["customer_id"])


def test_number_that_moved_to_an_unknown_customer_is_disconnected(
    connection: Connection, sandbox: Sandbox
) -> None:
    theirs = Customer(kapso_id=move_to_another_site(connection, sandbox))
    with listening() as heard:
        post(payload_for(theirs, connection.phone_number_id))
    assert heard.names() == ["whatsapp_disconnected"]
    assert heard[0][1]["customer"] == connection.customer
    assert reload(connection).disconnect_reason == "moved"
    assert is_ignored_with_the_reason(last_delivery())
    assert Customer.objects.count() == 1


@pytest.mark.parametrize("event", [CREATED, DELETED])
def test_what_is_said_of_an_unknown_customer_moves_no_number_by_itself(
    connection: Connection, sandbox: Sandbox, event: str
) -> None:
    with listening() as heard:
        post(foreign_payload(connection.phone_number_id), event=event)
        WebhookEvent.objects.update(
            received_at=timezone.now() - timedelta(minutes=5), next_attempt_at=timezone.now()
        )
        inbox.process(last_delivery().pk)
    assert heard == []
    assert reload(connection).is_connected
    assert last_delivery().status == "ignored"


def test_number_that_moved_to_an_unknown_customer_is_not_touched(
    connection: Connection, sandbox: Sandbox
) -> None:
    move_to_another_site(connection, sandbox)
    with pytest.raises(NumberMoved):
        onboarding.check_health(connection)
    assert not reload(connection).is_connected
    assert [event.data["reason"] for event in events("disconnected")] == ["moved"]
    assert Customer.objects.count() == 1


@pytest.mark.parametrize("others", [1, 11])
def test_sync_leaves_the_numbers_of_unknown_customers_alone(
    connection: Connection, sandbox: Sandbox, others: int
) -> None:
    """With more than a few, all customers are listed in place of asking for each."""
    for number in range(others):
        sandbox.add_number(external_customer_id=f"other-site-{number}")
    sandbox.add_number()  # of the project itself
    ours = make_customer(kapso_id=None, external_customer_id="crm-1")  # created, but not recorded
    number = sandbox.add_number(external_customer_id="crm-1")["phone_number_id"]
    before = Customer.objects.count()
    dry = sync.run(dry_run=True)
    assert (dry.connected, dry.ignored) == (1, others)
    with listening() as heard:
        report = sync.run()
    assert (report.connected, report.ignored, report.errors) == (1, others, [])
    assert heard.names() == ["whatsapp_connected"]
    assert ours.connections.get().phone_number_id == number
    assert Customer.objects.count() == before


def test_sync_leaves_a_customer_alone_who_was_just_deleted_at_kapso(sandbox: Sandbox) -> None:
    sandbox.add_number(external_customer_id="other-site-1")
    sandbox.faults(api=[{"match": "/customers/", "kind": "status", "status": 404}])
    report = sync.run()
    assert (report.connected, report.ignored, report.errors) == (0, 0, [])


def test_sync_disconnects_a_number_that_moved_to_an_unknown_customer(
    connection: Connection, sandbox: Sandbox
) -> None:
    move_to_another_site(connection, sandbox)
    assert sync.run(dry_run=True).disconnected == 1
    with listening() as heard:
        report = sync.run()
    assert heard.names() == ["whatsapp_disconnected"]
    assert (report.disconnected, report.ignored, report.errors) == (1, 2, [])
    assert reload(connection).disconnect_reason == "moved"
    assert sync.run().disconnected == 0


def test_sync_adopts_unknown_customers_where_that_is_on(configure: Any, sandbox: Sandbox) -> None:
    configure(ADOPT_UNKNOWN_CUSTOMERS=True)
    sandbox.add_number(external_customer_id="other-site-1")
    report = sync.run()
    assert (report.connected, report.ignored) == (1, 0)
    assert Customer.objects.get().external_customer_id == "other-site-1"
