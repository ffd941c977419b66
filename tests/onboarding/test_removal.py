"""Numbers that staff remove from Kapso: only their customer's, and once."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from kapso_connect import exceptions, onboarding
from kapso_connect.exceptions import KapsoError, KapsoUnavailable
from kapso_connect.models import Connection, Customer
from kapso_connect.onboarding.numbers import Number
from kapso_connect.testing import Sandbox

from ..factories import DELETED, listening, make_connection, make_customer, payload_for, post
from .support import during_request, events, reload

pytestmark = pytest.mark.django_db(transaction=True)


def test_disconnecting_removes_the_number_and_ends_the_connect_url(
    sandbox: Sandbox, connection: Connection, actor: User
) -> None:
    Customer.objects.update(connect_key="key")
    with listening() as heard:
        assert not onboarding.disconnect_number(connection, actor=actor).is_connected
    assert heard.names() == ["whatsapp_disconnected"]
    (event,) = events("disconnected")
    assert (event.actor, event.source, event.data) == (actor, "manual", {"reason": "staff"})
    assert Customer.objects.get(pk=connection.customer_id).connect_key is None
    (request,) = (row for row in sandbox.requests() if row["method"] == "DELETE")
    assert request["path"].endswith(connection.phone_number_id)


def test_disconnecting_revokes_the_links_first(
    sandbox: Sandbox, connection: Connection, actor: User
) -> None:
    link = onboarding.create_setup_link(connection.customer)
    sandbox.faults(api=[{"match": "^PATCH", "kind": "status", "status": 422}])
    with pytest.raises(KapsoError):
        onboarding.disconnect_number(connection, actor=actor)
    connection.refresh_from_db()
    assert connection.is_connected, "the link could connect it again"
    sandbox.clear_faults()
    onboarding.disconnect_number(connection, actor=actor)
    link.refresh_from_db()
    assert link.status == "revoked"
    (event,) = events("setup_link_revoked")
    assert event.actor == actor


@pytest.mark.parametrize("late", [False, True])
def test_webhook_about_a_disconnection_by_staff_is_the_same_disconnection(
    sandbox: Sandbox, connection: Connection, actor: User, late: bool
) -> None:
    """The webhook may arrive before the API's response, or after it."""

    def deliver() -> None:
        payload = payload_for(connection.customer, connection.phone_number_id)
        assert post(payload, event=DELETED).status_code == 200

    def disconnect() -> None:
        onboarding.disconnect_number(connection, actor=actor)

    with listening("whatsapp_disconnected") as heard:
        if late:
            disconnect()
            deliver()
        else:
            during_request(sandbox, "^DELETE", deliver, disconnect, kind="hang")
    assert len(heard) == 1
    (event,) = events("disconnected")
    assert event.actor == actor
    recorded = reload(connection)
    assert (recorded.status, recorded.disconnect_reason) == ("disconnected", "staff")


def test_number_that_kapso_no_longer_has_is_disconnected(sandbox: Sandbox, actor: User) -> None:
    connection = make_connection(
        phone_number_id="404404", connected_at=timezone.now() - timedelta(minutes=1)
    )
    assert not onboarding.disconnect_number(connection, actor=actor).is_connected
    assert len(events("disconnected")) == 1


def test_while_kapso_is_away_the_number_stays_connected(
    sandbox: Sandbox, connection: Connection, configure: Any
) -> None:
    Customer.objects.update(connect_key="key")
    configure(API_BUDGET=1.0)
    sandbox.faults(api=[{"kind": "status", "status": 503}])
    with pytest.raises(KapsoUnavailable):
        onboarding.disconnect_number(connection)
    connection.refresh_from_db()
    assert connection.is_connected
    assert Customer.objects.get(pk=connection.customer_id).connect_key == "key"


def test_disconnecting_a_disconnected_number_makes_no_request(sandbox: Sandbox) -> None:
    connection = make_connection(status="disconnected")
    onboarding.disconnect_number(connection)
    assert sandbox.requests() == []


def test_number_connected_again_during_the_request_stays_connected(
    sandbox: Sandbox, connection: Connection
) -> None:
    with pytest.raises(exceptions.TryLater):
        during_request(
            sandbox,
            "^DELETE",
            lambda: Connection.objects.update(connected_at=timezone.now()),
            lambda: onboarding.disconnect_number(connection),
            kind="hang",
        )
    assert reload(connection).is_connected


@pytest.fixture
def new_owner(sandbox: Sandbox, connection: Connection) -> str:
    """Kapso's id of the customer that the number moved to, without a word to this site."""
    kapso_id: str = sandbox.add_number(external_customer_id="new owner")["customer_id"]
    sandbox.patch_number(connection.phone_number_id, customer_id=kapso_id)
    Connection.objects.update(connected_at=timezone.now())
    return kapso_id


@pytest.mark.parametrize("call", [onboarding.disconnect_number, onboarding.check_health])
def test_number_that_moved_is_not_touched_and_both_customers_hear_of_it(
    sandbox: Sandbox, connection: Connection, new_owner: str, call: Any
) -> None:
    Customer.objects.filter(pk=connection.customer_id).update(connect_key="key")
    with listening() as heard, pytest.raises(exceptions.NumberMoved, match="not this customer's"):
        call(connection)
    assert heard.names() == ["whatsapp_disconnected", "whatsapp_connected"]
    assert heard.only("whatsapp_disconnected")["customer"] == connection.customer
    assert heard.only("whatsapp_connected")["customer"].kapso_id == new_owner
    now = reload(connection)
    assert (now.customer.kapso_id, now.is_connected, now.health_status) == (new_owner, True, "")
    assert not [row for row in sandbox.requests() if row["method"] == "DELETE"]
    assert not events("health_checked")
    assert Customer.objects.get(pk=connection.customer_id).connect_key == "key"


def test_number_of_no_customer_any_more_is_not_touched(
    sandbox: Sandbox, connection: Connection
) -> None:
    sandbox.patch_number(connection.phone_number_id, customer_id=None)
    with pytest.raises(exceptions.NumberMoved):
        onboarding.disconnect_number(connection)
    assert not reload(connection).is_connected
    assert not [row for row in sandbox.requests() if row["method"] == "DELETE"]


def test_number_that_moves_while_links_are_revoked_is_not_touched(
    sandbox: Sandbox, connection: Connection
) -> None:
    onboarding.create_setup_link(connection.customer)
    new = make_customer()

    def move() -> None:
        onboarding.connect(
            new, Number(connection.phone_number_id), source="sync", asked_at=timezone.now()
        )

    with pytest.raises(exceptions.NumberMoved):
        during_request(
            sandbox, "^PATCH", move, lambda: onboarding.disconnect_number(connection), kind="hang"
        )
    assert reload(connection).customer == new
    assert reload(connection).is_connected
    assert not [row for row in sandbox.requests() if row["method"] == "DELETE"]


def test_health_of_a_number_that_kapso_no_longer_has_disconnects_it(sandbox: Sandbox) -> None:
    connection = make_connection(
        phone_number_id="404404", connected_at=timezone.now() - timedelta(minutes=1)
    )
    with pytest.raises(exceptions.NumberGone, match="no longer has"):
        onboarding.check_health(connection)
    assert not reload(connection).is_connected
    assert reload(connection).disconnect_reason == "not_found"


@pytest.mark.parametrize("call", [onboarding.disconnect_number, onboarding.check_health])
def test_number_that_the_api_does_not_show_yet_stays_connected(
    sandbox: Sandbox, connection: Connection, call: Any
) -> None:
    Connection.objects.update(connected_at=timezone.now())
    sandbox.faults(api=[{"match": "phone_numbers/", "kind": "status", "status": 404}])
    with listening() as heard, pytest.raises(exceptions.TryLater, match="not show it yet"):
        call(connection)
    assert heard == []
    assert reload(connection).is_connected


def test_health_of_a_number_that_moves_meanwhile_is_not_recorded(
    sandbox: Sandbox, connection: Connection
) -> None:
    new = make_customer()

    def move() -> None:
        onboarding.connect(
            new, Number(connection.phone_number_id), source="sync", asked_at=timezone.now()
        )

    with pytest.raises(exceptions.NumberMoved):
        during_request(sandbox, "/health$", move, lambda: onboarding.check_health(connection))
    assert reload(connection).health_status == ""
    assert not events("health_checked")
