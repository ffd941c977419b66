"""Numbers: connected, moved and disconnected, each once."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from kapso_connect import exceptions, onboarding
from kapso_connect.exceptions import KapsoError, KapsoUnavailable
from kapso_connect.models import Connection, Customer, TimelineEvent
from kapso_connect.onboarding.numbers import Number
from kapso_connect.testing import Sandbox

from ..factories import DELETED, listening, make_connection, make_customer, payload_for, post
from .support import during_request, events, reload

pytestmark = pytest.mark.django_db(transaction=True)


# Connecting


def test_connecting_again_changes_nothing() -> None:
    customer = make_customer()
    first = onboarding.connect(customer, Number("1"), source="webhook")
    with listening() as heard:
        again = onboarding.connect(customer, Number("1", verified_name="Shop"), source="redirect")
    assert heard == []
    assert again.pk == first.pk
    assert again.verified_name == "Shop"
    assert TimelineEvent.objects.count() == 1


def test_unconfirmed_details_do_not_overwrite_known_ones() -> None:
    customer = make_customer()
    onboarding.connect(customer, Number("1", verified_name="Shop"), source="webhook")
    onboarding.connect(customer, Number("1", verified_name="Other"), source="redirect")
    assert Connection.objects.get().verified_name == "Shop"


@pytest.mark.parametrize("state", ["closed", "another customer's"])
def test_reconnecting_and_moving_need_confirmation(state: str) -> None:
    known = make_connection()
    customer = known.customer if state == "closed" else make_customer()
    if state == "closed":
        onboarding.disconnect(known.phone_number_id, source="webhook")
    number = Number(known.phone_number_id)
    with listening() as heard:
        with pytest.raises(exceptions.NeedsConfirmation):
            onboarding.connect(customer, number, source="webhook")
        assert heard == []
        onboarding.connect(customer, number, source="sync", asked_at=timezone.now())
    assert "whatsapp_connected" in heard.names()


def test_moved_number_sends_an_event_for_both_customers() -> None:
    known = make_connection(setup_link=None)
    old, new = known.customer, make_customer()
    looked_at = {
        "health_status": "error",
        "health_error": "no",
        "health_checked_at": timezone.now(),
    }
    Connection.objects.update(**looked_at)
    with listening() as heard:
        onboarding.connect(
            new, Number(known.phone_number_id), source="sync", asked_at=timezone.now()
        )
    assert heard.names() == ["whatsapp_disconnected", "whatsapp_connected"]
    assert heard[0][1]["customer"] == old
    assert heard[0][1]["event"].data == {"reason": "moved"}
    assert heard[1][1]["customer"] == new
    moved = Connection.objects.get()
    assert moved.customer == new
    # Its health was about the time with the old customer.
    assert (moved.health_status, moved.health_error, moved.health_checked_at) == ("", "", None)


# Disconnecting


def test_disconnection_before_its_connection_is_remembered() -> None:
    customer = make_customer()
    with listening() as heard:
        onboarding.disconnect("1", source="webhook", customer=customer)
        with pytest.raises(exceptions.NeedsConfirmation):
            onboarding.connect(customer, Number("1"), source="webhook")
    assert heard == []


def test_disconnection_of_an_unknown_number_records_nothing() -> None:
    assert onboarding.disconnect("1", source="webhook") is None
    assert not Connection.objects.exists()


def test_report_about_an_earlier_connection_needs_confirmation() -> None:
    known = make_connection()
    before = known.connected_at - timedelta(seconds=1)
    after = known.connected_at + timedelta(seconds=1)
    number = known.phone_number_id
    with pytest.raises(exceptions.NeedsConfirmation):
        onboarding.disconnect(number, source="webhook", occurred_at=before)
    with pytest.raises(exceptions.NeedsConfirmation):
        onboarding.disconnect(number, source="webhook", customer=make_customer())
    closed = onboarding.disconnect(number, source="webhook", occurred_at=after)
    assert closed is not None
    assert closed.disconnected_at == after


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
    connection = make_connection(phone_number_id="404404")
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
