"""Disconnected, offboarded, reconnected, Meta's decisions: late, reordered and replayed."""

from __future__ import annotations

import time
import uuid
from datetime import datetime, timedelta
from datetime import timezone as dt_timezone
from typing import Any

import pytest
from django.http import HttpResponse
from django.utils import timezone

from kapso_connect.models import Connection, TimelineEvent, WebhookEvent
from kapso_connect.testing import Sandbox
from kapso_connect.webhooks import inbox

from ..factories import (
    CREATED,
    DELETED,
    Heard,
    listening,
    make_connection,
    make_customer,
    payload_for,
    post,
    remote_customer,
)

pytestmark = pytest.mark.django_db(transaction=True)

DISCONNECTED = "whatsapp.phone_number.disconnected"
OFFBOARDED = "whatsapp.phone_number.offboarded"
RECONNECTED = "whatsapp.phone_number.reconnected"


def tell(event: str, known: Connection, *, at: datetime | None = None, **more: Any) -> HttpResponse:
    """Deliver a lifecycle event of version 2 for a known number."""
    extra: dict[str, Any] = {"id": str(uuid.uuid4()), "event": event, **more}
    if at is not None:
        extra["occurred_at"] = at.isoformat()
    return post(payload_for(known.customer, known.phone_number_id, **extra), event=event)


def last() -> WebhookEvent:
    return WebhookEvent.objects.latest("pk")


def run_due() -> None:
    """What kapso_sync does with the inbox, without waiting."""
    WebhookEvent.objects.filter(status="pending").update(next_attempt_at=timezone.now())
    for event in WebhookEvent.objects.filter(status="pending"):
        inbox.process(event.pk)


def reload(connection: Connection) -> Connection:
    return Connection.objects.get(pk=connection.pk)


@pytest.fixture
def known(sandbox: Sandbox) -> Connection:
    """A number that the site and the sandbox agree is connected, since long."""
    customer = remote_customer(sandbox)
    (number,) = sandbox.state()["phone_numbers"]
    sandbox.patch_number(number["phone_number_id"], created_at="2026-01-01T00:00:00Z")
    return make_connection(
        customer,
        phone_number_id=number["phone_number_id"],
        business_account_id=number["business_account_id"],
        connected_at=timezone.now() - timedelta(hours=1),
    )


def closed(known: Connection, *, ago: timedelta = timedelta(minutes=30)) -> Connection:
    known.status = "disconnected"
    known.disconnected_at = timezone.now() - ago
    known.save()
    return known


# Closing


@pytest.mark.parametrize("event", [DISCONNECTED, OFFBOARDED])
def test_what_closes_a_connection_keeps_why_and_when(known: Connection, event: str) -> None:
    at = timezone.now() - timedelta(minutes=1)
    with listening() as heard:
        tell(
            event,
            known,
            at=at,
            disconnection={"reason": "ACCOUNT_REMOVED", "initiated_by": "owner"},
        )
    told = heard.only("whatsapp_disconnected")
    assert told["event"].data["reason"] == "ACCOUNT_REMOVED"
    assert told["event"].data["initiated_by"] == "owner"
    assert told["event"].occurred_at == at
    assert reload(known).disconnected_at == at
    assert not reload(known).is_connected


def test_when_a_connection_was_closed_on_a_site_without_time_zones(settings: Any) -> None:
    settings.USE_TZ = False
    settings.TIME_ZONE = "America/New_York"
    known = make_connection(connected_at=datetime(2026, 1, 1))
    tell(DISCONNECTED, known, at=datetime(2026, 1, 2, 5, tzinfo=dt_timezone.utc))
    assert last().status == "processed"
    assert reload(known).disconnected_at == datetime(2026, 1, 2)


def test_a_disconnection_whose_reason_is_null(known: Connection) -> None:
    nothing = {"reason": None, "initiated_by": None}
    tell(DISCONNECTED, known, at=timezone.now(), disconnection=nothing)
    assert TimelineEvent.objects.get().data["reason"] == "disconnected"


def test_a_late_disconnection_does_not_undo_a_newer_connection(
    known: Connection, sandbox: Sandbox
) -> None:
    with listening() as heard:
        tell(DISCONNECTED, known, at=known.connected_at - timedelta(minutes=1))
    assert heard == []
    assert reload(known).is_connected
    assert last().status == "ignored"
    assert "Out of date" in last().last_error


def test_a_disconnection_that_came_before_the_connection_was_noted(
    known: Connection, sandbox: Sandbox
) -> None:
    # ``created`` was delivered late, so our connected_at is after the disconnection.
    sandbox.patch_number(known.phone_number_id, status="DISCONNECTED")
    with listening() as heard:
        tell(
            DISCONNECTED,
            known,
            at=known.connected_at - timedelta(seconds=1),
            disconnection={"reason": "left"},
        )
    assert heard.only("whatsapp_disconnected")["event"].data["reason"] == "left"


def test_a_disconnection_of_a_number_that_moved_is_not_the_new_customers(
    known: Connection, sandbox: Sandbox
) -> None:
    former = make_customer()
    with listening() as heard:
        post(payload_for(former, known.phone_number_id), event=DELETED)
    assert heard == []
    assert reload(known).is_connected
    assert last().status == "pending"  # the API may be about to change its mind: teardown


def test_deleted_for_a_number_that_was_reopened_waits_for_the_teardown(
    known: Connection, sandbox: Sandbox
) -> None:
    known.disconnected_at = timezone.now() - timedelta(minutes=90)
    known.save()
    with listening() as heard:
        tell(DELETED, known)
        assert last().status == "pending"
        assert heard == []
        sandbox.send_event(DELETED, phone_number_id=known.phone_number_id)
        _until_gone(sandbox, known)
        run_due()
    assert heard.names() == ["whatsapp_disconnected"]
    assert last().status == "processed"


def _until_gone(sandbox: Sandbox, known: Connection) -> None:
    for _ in range(200):
        time.sleep(0.02)
        numbers = sandbox.state()["phone_numbers"]
        if known.phone_number_id not in [n["phone_number_id"] for n in numbers]:
            return
    raise AssertionError("the sandbox still has the number")


def test_a_replayed_deleted_does_not_close_what_was_reopened(
    known: Connection, sandbox: Sandbox
) -> None:
    known.disconnected_at = timezone.now() - timedelta(minutes=90)
    known.save()
    with listening() as heard:
        tell(DELETED, known)
        WebhookEvent.objects.update(received_at=timezone.now() - timedelta(minutes=5))
        run_due()
    assert heard == []
    assert reload(known).is_connected
    assert last().status == "ignored"


# Reopening


def test_reconnected_reopens_when_the_api_agrees(known: Connection, sandbox: Sandbox) -> None:
    closed(known)
    with listening() as heard:
        tell(RECONNECTED, known, at=timezone.now())
    assert heard.names() == ["whatsapp_reconnected"]
    assert heard[0][1]["source"] == "webhook"
    assert reload(known).is_connected
    assert last().status == "processed"
    assert TimelineEvent.objects.get().webhook_event == last()


def test_reconnected_does_not_reopen_when_the_api_disagrees(
    known: Connection, sandbox: Sandbox
) -> None:
    closed(known)
    sandbox.patch_number(known.phone_number_id, status="DISCONNECTED")
    with listening() as heard:
        tell(RECONNECTED, known, at=timezone.now())
    assert heard == []
    assert not reload(known).is_connected


def test_reconnected_of_what_is_connected_is_no_news(known: Connection) -> None:
    with listening() as heard:
        tell(RECONNECTED, known, at=timezone.now())
    assert heard == []
    assert last().status == "processed"


def test_reconnected_of_an_unknown_number_connects_it(sandbox: Sandbox) -> None:
    customer = remote_customer(sandbox)
    (number,) = sandbox.state()["phone_numbers"]
    payload = payload_for(customer, number["phone_number_id"])
    with listening() as heard:
        post(payload, event=RECONNECTED)
    assert heard.names() == ["whatsapp_connected"]


@pytest.mark.parametrize("how", [DELETED, DISCONNECTED, OFFBOARDED])
def test_a_replayed_created_does_not_reconnect(
    known: Connection, sandbox: Sandbox, how: str
) -> None:
    captured = payload_for(known.customer, known.phone_number_id)
    sandbox.send_event(how, phone_number_id=known.phone_number_id)
    if how != DISCONNECTED:
        _until_gone(sandbox, known)
    tell(how, known, at=timezone.now() - timedelta(minutes=5) if how != DELETED else None)
    assert not reload(known).is_connected
    with listening() as heard:
        assert post(captured, event=CREATED, key=str(uuid.uuid4())).status_code == 200
    assert heard == []
    assert not reload(known).is_connected
    assert last().status == "ignored"


def test_a_created_replayed_during_the_teardown_waits_and_then_loses(
    known: Connection, sandbox: Sandbox
) -> None:
    tell(DELETED, known)
    with listening() as heard:
        post(payload_for(known.customer, known.phone_number_id))  # the API still shows it
        assert last().status == "pending"
        sandbox.send_event(DELETED, phone_number_id=known.phone_number_id)
        _until_gone(sandbox, known)
        run_due()
    assert heard == []
    assert last().status == "ignored"


def test_a_number_connected_anew_after_its_deletion_is_announced_at_once(
    known: Connection, sandbox: Sandbox
) -> None:
    tell(DELETED, known)
    sandbox.patch_number(
        known.phone_number_id, created_at=(timezone.now() + timedelta(seconds=1)).isoformat()
    )
    with listening() as heard:
        post(payload_for(known.customer, known.phone_number_id))
    assert heard.names() == ["whatsapp_connected"]


def test_deleted_before_created_ends_disconnected(sandbox: Sandbox) -> None:
    customer = make_customer()
    with listening() as heard:
        post(payload_for(customer, "77"), event=DELETED)
        post(payload_for(customer, "77"), event=CREATED)  # late; the API does not know it
    assert heard == []
    assert not Connection.objects.get().is_connected


def test_while_the_api_is_away_reopening_waits(known: Connection, sandbox: Sandbox) -> None:
    closed(known)
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 401}])
    with listening() as heard:
        assert tell(RECONNECTED, known, at=timezone.now()).status_code == 200
        assert last().status == "pending"
        assert "401" in last().last_error or "key" in last().last_error
        sandbox.clear_faults()
        run_due()
    assert heard.names() == ["whatsapp_reconnected"]


def test_an_api_that_stays_away_ends_as_failed_and_can_be_run_again(
    known: Connection, sandbox: Sandbox, configure: Any
) -> None:
    configure(RETRY_LIMIT=2)
    closed(known)
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 401}])
    tell(RECONNECTED, known, at=timezone.now())
    run_due()
    assert last().status == "failed"
    assert last().last_error
    sandbox.clear_faults()
    assert inbox.process_again(last())
    assert reload(known).is_connected


# Moving


def test_a_number_that_moves_follows_the_api_and_tells_both(
    known: Connection, sandbox: Sandbox
) -> None:
    former, new = known.customer, remote_customer(sandbox)
    sandbox.patch_number(known.phone_number_id, customer_id=new.kapso_id)
    with listening() as heard:
        post(payload_for(new, known.phone_number_id))
    assert [(name, told["customer"]) for name, told in heard] == [
        ("whatsapp_disconnected", former),
        ("whatsapp_connected", new),
    ]
    assert reload(known).customer == new


def test_a_replayed_created_does_not_move_a_number_back(
    known: Connection, sandbox: Sandbox
) -> None:
    former = make_customer()
    with listening() as heard:
        post(payload_for(former, known.phone_number_id))
    assert heard == []
    assert reload(known).customer == known.customer


# Meta's decisions


def account(
    name: str, known: Connection, *, at: datetime | None = None, **more: Any
) -> dict[str, Any]:
    return {
        "id": str(uuid.uuid4()),
        "event": f"whatsapp.account.{name}",
        "occurred_at": (at or timezone.now()).isoformat(),
        "business_account_id": known.business_account_id,
        "project": {"id": str(uuid.uuid4())},
        "phone_numbers": [{"id": known.phone_number_id, "display_phone_number": "+1 415-555-2671"}],
        **more,
    }


def decide(payload: dict[str, Any]) -> Heard:
    with listening() as heard:
        assert post(payload, event=payload["event"]).status_code == 200
    return heard


def test_a_restriction_is_kept_and_told(known: Connection) -> None:
    restrictions = [{"type": "RESTRICTED_BIZ_INITIATED_MESSAGING", "expires_at": "2026-12-01"}]
    at = timezone.now()
    heard = decide(account("restricted", known, at=at, restrictions=restrictions))
    told = heard.only("whatsapp_account_updated")
    assert told["connection"] == known
    assert told["customer"] == known.customer
    assert told["event"].data["event"] == "restricted"
    assert told["event"].data["restrictions"] == restrictions
    now = reload(known)
    assert (now.account_status, now.restrictions) == ("restricted", restrictions)
    assert now.account_updated_at == at
    assert now.is_connected


def test_a_ban_and_its_end(known: Connection) -> None:
    ban = {"state": "DISABLE", "date_label": "2026-11-22"}
    heard = decide(account("disabled", known, ban=ban))
    assert heard.only("whatsapp_account_updated")["event"].data["ban"] == ban
    assert reload(known).account_status == "disabled"
    decide(account("reinstated", known))
    assert reload(known).account_status == "active"
    assert reload(known).restrictions == []


def test_a_violation_is_told_and_changes_no_status(known: Connection) -> None:
    violation = {"type": "SPAM", "remediation": "Stop it."}
    heard = decide(account("violation", known, violation=violation))
    assert heard.only("whatsapp_account_updated")["event"].data["violation"] == violation
    assert reload(known).account_status == "active"


def test_several_numbers_are_told_one_by_one(known: Connection) -> None:
    # One is named, one is known to be of the account, one is of the account and disconnected.
    other = make_connection(business_account_id="other")
    same = make_connection(business_account_id=known.business_account_id)
    make_connection(business_account_id=known.business_account_id, status="disconnected")
    make_connection(business_account_id="unrelated")
    payload = account("disabled", known)
    payload["phone_numbers"].append({"id": other.phone_number_id})
    heard = decide(payload)
    assert {told["connection"].pk for _, told in heard} == {known.pk, other.pk, same.pk}


def test_a_late_decision_does_not_undo_a_newer_one(known: Connection) -> None:
    decide(account("reinstated", known))
    heard = decide(account("disabled", known, at=timezone.now() - timedelta(hours=1)))
    assert heard == []
    assert reload(known).account_status == "active"
    assert last().status == "ignored"


@pytest.mark.parametrize("name", ["violation", "disabled"])
def test_a_replayed_decision_is_told_once(known: Connection, name: str) -> None:
    payload = account(name, known)
    assert len(decide(payload)) == 1
    assert decide(payload) == []
    assert last().status == "ignored"


def test_an_unknown_account_is_a_failure_that_staff_can_read_and_run_again(
    known: Connection,
) -> None:
    payload = account("disabled", known, business_account_id="nobody", phone_numbers=[])
    assert decide(payload) == []
    assert last().status == "failed"
    assert "nobody" in last().last_error
    Connection.objects.update(business_account_id="nobody")
    with listening() as heard:
        assert inbox.process_again(last())
    assert heard.names() == ["whatsapp_account_updated"]
