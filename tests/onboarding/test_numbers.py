"""Numbers: connected, moved and disconnected, each once."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from kapso_connect import exceptions, onboarding
from kapso_connect.models import Connection, TimelineEvent
from kapso_connect.onboarding.numbers import Number

from ..factories import listening, make_connection, make_customer

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
    before = {
        "health_status": "error",
        "health_error": "no",
        "health_checked_at": timezone.now(),
        "health_problems": [{"check": "x"}],
        "health_retry_after": timezone.now(),
        "funding_status": "funded",
        "funding_checked_at": timezone.now(),
        "account_status": "restricted",
        "restrictions": [{"type": "X"}],
        "account_updated_at": timezone.now(),
        "disconnected_at": timezone.now() - timedelta(days=1),
        "disconnect_reason": "partner_removed",
        "provisioned_phone_number_id": "p-1",
        "business_account_id": "1",
        "verified_name": "Old",
        "quality_rating": "RED",
        "created_at": timezone.now() - timedelta(days=30),
    }
    Connection.objects.update(**before)
    started = timezone.now()
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
    # Nothing shows what was known while it was the old customer's.
    assert {name: getattr(moved, name) for name in before if name != "created_at"} == {
        "health_status": "",
        "health_error": "",
        "health_checked_at": None,
        "health_problems": [],
        "health_retry_after": None,
        "funding_status": "",
        "funding_checked_at": None,
        "account_status": "active",
        "restrictions": [],
        "account_updated_at": None,
        "disconnected_at": None,
        "disconnect_reason": "",
        "provisioned_phone_number_id": "",
        "business_account_id": "",
        "verified_name": "",
        "quality_rating": "",
    }
    assert moved.created_at >= started
    assert moved.connected_at is not None
    assert moved.connected_at >= started
    assert [event.kind for event in old.events.all()] == ["disconnected"]


def test_number_of_a_customer_who_lost_it_before_shows_nothing_of_that_time() -> None:
    known = make_connection()
    onboarding.disconnect(known.phone_number_id, source="webhook", data={"reason": "offboarded"})
    onboarding.connect(
        make_customer(), Number(known.phone_number_id), source="sync", asked_at=timezone.now()
    )
    moved = Connection.objects.get()
    assert (moved.disconnected_at, moved.disconnect_reason) == (None, "")


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
