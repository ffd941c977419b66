"""Webhooks about numbers: late, reordered and replayed."""

from __future__ import annotations

import time
import uuid
from datetime import datetime, timedelta
from datetime import timezone as dt_timezone
from typing import Any

import pytest
from django.http import HttpResponse
from django.utils import timezone

from kapso_connect.exceptions import TryLater
from kapso_connect.kapso.types import KapsoPhoneNumber
from kapso_connect.models import Connection, TimelineEvent, WebhookEvent
from kapso_connect.onboarding import accounts
from kapso_connect.onboarding.remote_numbers import apply_remote_number
from kapso_connect.testing import Sandbox
from kapso_connect.webhooks import inbox

from ..clock import FakeClock, summer_time_changes
from ..factories import (
    CREATED,
    DELETED,
    listening,
    make_connection,
    make_customer,
    payload_for,
    post,
    remote_customer,
)
from ..faulty_server import FaultyServer, hung
from .support import last_delivery, reload, wait_until_deleted

pytestmark = pytest.mark.django_db(transaction=True)


DISCONNECTED = "whatsapp.phone_number.disconnected"
OFFBOARDED = "whatsapp.phone_number.offboarded"
RECONNECTED = "whatsapp.phone_number.reconnected"


def deliver(
    event: str, connection: Connection, *, at: datetime | None = None, **more: Any
) -> HttpResponse:
    """Deliver a lifecycle event of version 2 about a known number."""
    extra: dict[str, Any] = {"id": str(uuid.uuid4()), "event": event, **more}
    if at is not None:
        extra["occurred_at"] = at.isoformat()
    return post(payload_for(connection.customer, connection.phone_number_id, **extra), event=event)


def run_due() -> None:
    """Process the inbox as kapso_sync does, without its delays."""
    WebhookEvent.objects.filter(status="pending").update(next_attempt_at=timezone.now())
    for event in WebhookEvent.objects.filter(status="pending"):
        inbox.process(event.pk)


def long_after_it_was_received() -> None:
    """Process the inbox when the API has had time to show what was reported."""
    WebhookEvent.objects.update(received_at=timezone.now() - timedelta(minutes=1))
    run_due()


def closed(connection: Connection, *, ago: timedelta = timedelta(minutes=30)) -> Connection:
    connection.status = "disconnected"
    connection.disconnected_at = timezone.now() - ago
    connection.save()
    return connection


# Disconnected


@pytest.mark.parametrize(
    ("event", "reason"), [(DISCONNECTED, "ACCOUNT_REMOVED"), (OFFBOARDED, "offboarded")]
)
def test_disconnection_records_reason_and_time(
    connection: Connection, event: str, reason: str
) -> None:
    at = timezone.now() - timedelta(minutes=1)
    with listening() as heard:
        deliver(
            event,
            connection,
            at=at,
            disconnection={"reason": "ACCOUNT_REMOVED", "initiated_by": "owner"},
        )
    sent = heard.only("whatsapp_disconnected")
    assert sent["event"].data["reason"] == reason
    assert sent["event"].data["initiated_by"] == "owner"
    assert sent["event"].occurred_at == at
    assert reload(connection).disconnected_at == at
    assert not reload(connection).is_connected


def test_time_of_a_disconnection_on_a_site_without_time_zones(settings: Any) -> None:
    settings.USE_TZ = False
    settings.TIME_ZONE = "America/New_York"
    connection = make_connection(connected_at=datetime(2026, 1, 1))
    deliver(DISCONNECTED, connection, at=datetime(2026, 1, 2, 5, tzinfo=dt_timezone.utc))
    assert last_delivery().status == "processed"
    assert reload(connection).disconnected_at == datetime(2026, 1, 2)


@pytest.mark.parametrize("now", summer_time_changes())
def test_order_of_events_while_clocks_are_changed_on_a_site_without_time_zones(
    now: datetime, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.USE_TZ = False
    settings.TIME_ZONE = "Europe/Berlin"
    clock = FakeClock(monkeypatch, now)
    connection = make_connection(connected_at=timezone.now())
    number = connection.phone_number_id
    clock.advance(60)
    deliver(DISCONNECTED, connection, at=clock.now)
    assert last_delivery().status == "processed"
    assert not reload(connection).is_connected

    clock.advance(60)
    yesterday = timezone.now() - timedelta(days=1)
    remote = KapsoPhoneNumber(
        number, "internal", yesterday, yesterday, customer_id=connection.customer.kapso_id
    )
    with pytest.raises(TryLater, match="before it was disconnected"):
        apply_remote_number(connection.customer, remote, asked_at=timezone.now(), source="sync")
    clock.advance(90)
    again = apply_remote_number(connection.customer, remote, asked_at=timezone.now(), source="sync")
    assert again is not None
    assert again.is_connected

    for seconds, decision, status in [(0, "disabled", "disabled"), (60, "reinstated", "active")]:
        clock.advance(seconds)
        accounts.update_account(
            decision, phone_number_ids=[number], business_account_id="1", source="webhook"
        )
        assert reload(connection).account_status == status


def test_disconnection_whose_reason_is_null(connection: Connection) -> None:
    nothing = {"reason": None, "initiated_by": None}
    deliver(DISCONNECTED, connection, at=timezone.now(), disconnection=nothing)
    assert TimelineEvent.objects.get().data["reason"] == "disconnected"


def test_late_disconnection_does_not_undo_a_newer_connection(
    connection: Connection, sandbox: Sandbox
) -> None:
    with listening() as heard:
        deliver(DISCONNECTED, connection, at=connection.connected_at - timedelta(minutes=1))
    assert heard == []
    assert reload(connection).is_connected
    assert last_delivery().status == "ignored"
    assert "Out of date" in last_delivery().last_error


def test_disconnection_from_before_the_connection_was_recorded(
    connection: Connection, sandbox: Sandbox
) -> None:
    # ``created`` was delivered late, so our connected_at is after the disconnection.
    sandbox.patch_number(connection.phone_number_id, status="DISCONNECTED")
    with listening() as heard:
        deliver(
            DISCONNECTED,
            connection,
            at=connection.connected_at - timedelta(seconds=1),
            disconnection={"reason": "left"},
        )
    assert heard.only("whatsapp_disconnected")["event"].data["reason"] == "left"


def test_deletion_for_the_former_customer_does_not_disconnect_a_moved_number(
    connection: Connection, sandbox: Sandbox
) -> None:
    former = make_customer()
    with listening() as heard:
        post(payload_for(former, connection.phone_number_id), event=DELETED)
    assert heard == []
    assert reload(connection).is_connected
    assert last_delivery().status == "pending"  # the API may still show the number as it was


def test_deletion_of_a_reconnected_number_waits_for_the_teardown(
    connection: Connection, sandbox: Sandbox
) -> None:
    connection.disconnected_at = timezone.now() - timedelta(minutes=90)
    connection.save()
    with listening() as heard:
        deliver(DELETED, connection)
        assert last_delivery().status == "pending"
        assert heard == []
        sandbox.send_event(DELETED, phone_number_id=connection.phone_number_id)
        wait_until_deleted(sandbox, connection)
        run_due()
    assert heard.names() == ["whatsapp_disconnected"]
    assert last_delivery().status == "processed"


@pytest.mark.parametrize("event", [DELETED, DISCONNECTED, OFFBOARDED])
@pytest.mark.parametrize("earlier", [None, timedelta(days=2)])
def test_captured_creation_sent_again_under_another_name_closes_nothing(
    connection: Connection, sandbox: Sandbox, event: str, earlier: timedelta | None
) -> None:
    if earlier:
        connection.disconnected_at = timezone.now() - earlier
        connection.save()
    captured = payload_for(connection.customer, connection.phone_number_id)
    with listening() as heard:
        post(captured, event=event)
        WebhookEvent.objects.update(received_at=timezone.now() - timedelta(minutes=5))
        run_due()
    assert heard == []
    assert reload(connection).is_connected
    assert last_delivery().status == "ignored"


def test_deletion_is_acted_on_after_any_number_of_replays_under_its_name(
    connection: Connection, sandbox: Sandbox
) -> None:
    captured = payload_for(connection.customer, connection.phone_number_id)
    long_ago = timezone.now() - timedelta(minutes=30)
    for _ in range(12):
        assert post(captured, event=DELETED).status_code == 200
        WebhookEvent.objects.update(received_at=long_ago)
        run_due()
        WebhookEvent.objects.update(processed_at=long_ago)
    assert WebhookEvent.objects.count() == inbox.MAX_REPEATS
    sandbox.send_event(DELETED, phone_number_id=connection.phone_number_id)
    wait_until_deleted(sandbox, connection)
    with listening() as heard:
        assert post(captured, event=DELETED).status_code == 200
    assert heard.names() == ["whatsapp_disconnected"]
    assert WebhookEvent.objects.count() == inbox.MAX_REPEATS


def test_closing_name_that_is_not_signed_closes_nothing_whatever_the_time(
    connection: Connection, sandbox: Sandbox
) -> None:
    long_ago = timezone.now() - timedelta(minutes=30)
    payload = payload_for(connection.customer, connection.phone_number_id)
    with listening() as heard:
        post({**payload, "occurred_at": long_ago.isoformat()}, event=OFFBOARDED)
    assert heard == []
    assert reload(connection).is_connected
    assert last_delivery().status == "ignored"


def test_name_and_time_in_a_signed_envelope_are_believed(connection: Connection) -> None:
    payload = payload_for(
        connection.customer, connection.phone_number_id, occurred_at=timezone.now().isoformat()
    )
    with listening() as heard:
        post({"event": OFFBOARDED, "data": payload}, event="unsigned.name")
    assert heard.names() == ["whatsapp_disconnected"]


def test_deletion_is_announced_once_the_api_confirms_it(
    connection: Connection, sandbox: Sandbox
) -> None:
    sandbox.send_event(DELETED, phone_number_id=connection.phone_number_id)
    wait_until_deleted(sandbox, connection)
    with listening() as heard:
        for _ in range(2):
            deliver(DELETED, connection)
    assert heard.names() == ["whatsapp_disconnected"]
    assert heard[0][1]["event"].data["reason"] == "deleted"
    assert not reload(connection).is_connected


def test_number_that_the_api_does_not_show_yet_is_not_disconnected(sandbox: Sandbox) -> None:
    # A captured ``created`` is sent again as ``deleted``, before the API shows the new number.
    customer = remote_customer(sandbox)
    (number,) = sandbox.state()["phone_numbers"]
    captured = payload_for(customer, number["phone_number_id"])
    sandbox.faults(api=[{"match": "phone_numbers/", "kind": "status", "status": 404, "times": 1}])
    with listening() as heard:
        post(captured, event=CREATED)
        post(captured, event=DELETED)
        assert last_delivery().status == "pending"
        run_due()
        assert heard.names() == ["whatsapp_connected"]
        Connection.objects.update(connected_at=timezone.now() - timedelta(minutes=1))
        sandbox.faults(api=[{"match": "phone_numbers/", "kind": "status", "status": 404}])
        run_due()
    assert heard.names() == ["whatsapp_connected", "whatsapp_disconnected"]


def test_while_the_api_is_away_a_deletion_waits(connection: Connection, sandbox: Sandbox) -> None:
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 401}])
    with listening() as heard:
        assert post(payload_for(connection.customer, connection.phone_number_id), event=DELETED)
        assert heard == []
        assert last_delivery().status == "pending"
        sandbox.clear_faults()
        sandbox.send_event(DELETED, phone_number_id=connection.phone_number_id)
        wait_until_deleted(sandbox, connection)
        run_due()
    assert heard.names() == ["whatsapp_disconnected"]


@pytest.mark.parametrize("minutes", [1, 30])
def test_offboarding_that_arrives_after_its_reconnection_closes_nothing(
    connection: Connection, sandbox: Sandbox, minutes: int
) -> None:
    reconnected = timezone.now() - timedelta(minutes=minutes)
    with listening() as heard:
        for _ in range(2):
            deliver(RECONNECTED, connection, at=reconnected)
        deliver(OFFBOARDED, connection, at=reconnected - timedelta(seconds=30))
        run_due()
    assert heard == []
    assert reload(connection).is_connected
    assert last_delivery().status == ("ignored" if minutes == 30 else "pending")


def test_disconnection_after_a_reconnection_is_believed(connection: Connection) -> None:
    reconnected = timezone.now() - timedelta(minutes=5)
    with listening() as heard:
        deliver(RECONNECTED, connection, at=reconnected)
        deliver(RECONNECTED, connection, at=reconnected - timedelta(minutes=5))  # an earlier one
        assert reload(connection).reported_connected_at == reconnected
        deliver(OFFBOARDED, connection, at=reconnected + timedelta(minutes=1))
    assert heard.names() == ["whatsapp_disconnected"]


def test_disconnection_from_the_future_happened_now(
    connection: Connection, sandbox: Sandbox
) -> None:
    deliver(DISCONNECTED, connection, at=timezone.now() + timedelta(days=400))
    closed_at = reload(connection).disconnected_at
    assert closed_at is not None
    assert closed_at <= timezone.now()
    with listening() as heard:
        Connection.objects.update(disconnected_at=closed_at - timedelta(minutes=3))
        deliver(RECONNECTED, connection, at=timezone.now())
    assert heard.names() == ["whatsapp_reconnected"]


# A device change, and other pauses


@pytest.mark.parametrize("event", [OFFBOARDED, DISCONNECTED])
def test_reconnection_within_two_minutes_is_recorded_at_once(
    connection: Connection, sandbox: Sandbox, event: str
) -> None:
    now = timezone.now()
    with listening() as heard:
        deliver(event, connection, at=now - timedelta(seconds=90))
        deliver(RECONNECTED, connection, at=now - timedelta(seconds=5))
    assert heard.names() == ["whatsapp_disconnected", "whatsapp_reconnected"]
    assert reload(connection).is_connected
    assert last_delivery().status == "processed"


@pytest.mark.parametrize("is_signed", [True, False])
def test_reconnection_that_is_not_known_to_be_later_waits(
    connection: Connection, sandbox: Sandbox, is_signed: bool
) -> None:
    now = timezone.now()
    deliver(DISCONNECTED, connection, at=now - timedelta(seconds=30))
    with listening() as heard:
        if is_signed:
            deliver(RECONNECTED, connection, at=now - timedelta(seconds=60))
        else:
            ids = connection.customer, connection.phone_number_id
            post(payload_for(*ids, occurred_at=now.isoformat()), event=RECONNECTED)
    assert heard == []
    assert last_delivery().status == "pending"


def test_reconnection_that_the_api_does_not_show_yet_is_tried_again(
    connection: Connection, sandbox: Sandbox
) -> None:
    deliver(OFFBOARDED, connection, at=timezone.now() - timedelta(seconds=60))
    sandbox.patch_number(connection.phone_number_id, status="DISCONNECTED")
    with listening() as heard:
        deliver(RECONNECTED, connection, at=timezone.now())
        assert (last_delivery().status, heard) == ("pending", [])
        sandbox.patch_number(connection.phone_number_id, status="CONNECTED")
        run_due()
    assert heard.names() == ["whatsapp_reconnected"]


def paused(connection: Connection) -> Connection:
    at = timezone.now() - timedelta(minutes=5)
    source = {"provider": "meta", "event": "ACCOUNT_OFFBOARDED"}
    deliver(OFFBOARDED, connection, at=at, source=source)
    return reload(connection)


def test_withdrawal_at_the_moment_of_the_pause_counts(connection: Connection) -> None:
    number = paused(connection)
    deliver(DISCONNECTED, number, at=number.disconnected_at)
    assert reload(connection).customer.status == "disconnected"


def test_pause_ends_although_the_events_name_no_customer(
    connection: Connection, sandbox: Sandbox
) -> None:
    for event, seconds in [(OFFBOARDED, 60), (RECONNECTED, 5)]:
        at = (timezone.now() - timedelta(seconds=seconds)).isoformat()
        number = {"phone_number_id": connection.phone_number_id}
        post({**number, "event": event, "occurred_at": at}, event=event)
    assert reload(connection).is_connected
    assert last_delivery().status == "processed"


def test_status_of_who_lost_a_number_that_another_customer_connects(
    connection: Connection, sandbox: Sandbox
) -> None:
    former = paused(connection).customer
    other = remote_customer(sandbox)
    sandbox.patch_number(connection.phone_number_id, customer_id=other.kapso_id)
    post(payload_for(other, connection.phone_number_id))
    assert reload(connection).customer == other
    former.refresh_from_db()
    assert former.status == "not_invited"


def test_offboarding_is_a_pause_of_metas(connection: Connection) -> None:
    with listening() as heard:
        number = paused(connection)
    assert heard.only("whatsapp_disconnected")["event"].data["reason"] == "offboarded"
    assert (number.status, number.is_paused, number.is_paused_for_long) == (
        "disconnected",
        True,
        False,
    )
    assert number.customer.status == "paused"
    Connection.objects.update(disconnected_at=timezone.now() - timedelta(minutes=61))
    assert reload(connection).is_paused_for_long


@pytest.mark.parametrize(
    ("event_in_source", "in_body", "is_paused"),
    [
        ("ACCOUNT_OFFBOARDED", True, True),
        ("ACCOUNT_OFFBOARDED", False, True),
        (None, True, True),
        (None, False, False),
    ],
)
def test_pause_is_believed_only_if_the_signed_body_says_so(
    connection: Connection,
    sandbox: Sandbox,
    event_in_source: str | None,
    in_body: bool,
    is_paused: bool,
) -> None:
    sandbox.patch_number(connection.phone_number_id, status="DISCONNECTED")
    payload = payload_for(connection.customer, connection.phone_number_id, id="1")
    payload["occurred_at"] = timezone.now().isoformat()
    if event_in_source:
        payload["source"] = {"event": event_in_source}
    if in_body:
        payload["event"] = OFFBOARDED
    post(payload, event=OFFBOARDED)
    assert not reload(connection).is_connected
    assert reload(connection).is_paused is is_paused


@pytest.mark.parametrize(
    ("source_event", "given", "reason"),
    [
        ("PARTNER_REMOVED", None, "partner_removed"),
        ("PARTNER_APP_UNINSTALLED", None, "partner_app_uninstalled"),
        ("PARTNER_REMOVED", "user_request", "user_request"),
    ],
)
def test_reason_of_the_customers_withdrawal(
    connection: Connection, source_event: str, given: str | None, reason: str
) -> None:
    disconnection = {"reason": given, "initiated_by": None}
    source = {"event": source_event}
    now = timezone.now()
    deliver(DISCONNECTED, connection, at=now, source=source, disconnection=disconnection)
    assert reload(connection).disconnect_reason == reason
    assert reload(connection).customer.status == "disconnected"


def test_withdrawal_of_a_paused_number_is_announced_once(connection: Connection) -> None:
    number = paused(connection)
    assert number.disconnected_at is not None
    with listening() as heard:
        deliver(DISCONNECTED, number, at=number.disconnected_at - timedelta(minutes=1))
        assert heard == []
        assert reload(connection).is_paused
        for _ in range(2):
            deliver(DISCONNECTED, number, at=number.disconnected_at + timedelta(minutes=1))
        deliver(OFFBOARDED, number, at=number.disconnected_at + timedelta(minutes=2))
    assert heard.only("whatsapp_disconnected")["event"].data["reason"] == "disconnected"
    assert reload(connection).customer.status == "disconnected"


def test_paused_number_that_was_deleted_is_gone_once_kapso_no_longer_has_it(
    connection: Connection, sandbox: Sandbox
) -> None:
    number = paused(connection)
    sandbox.patch_number(connection.phone_number_id, status="DISCONNECTED")
    with listening() as heard:
        deliver(DELETED, number)  # a replay, as far as anybody can tell, or the teardown has begun
        assert (reload(connection).is_paused, last_delivery().status) == (True, "pending")
        sandbox.send_event(DELETED, phone_number_id=connection.phone_number_id)
        wait_until_deleted(sandbox, connection)
        run_due()
    assert heard.names() == ["whatsapp_disconnected"]
    assert reload(connection).customer.status == "disconnected"


def test_deletion_of_a_paused_number_that_stays_at_kapso_changes_nothing(
    connection: Connection, sandbox: Sandbox
) -> None:
    number = paused(connection)
    sandbox.patch_number(connection.phone_number_id, status="DISCONNECTED")
    deliver(DELETED, number)
    WebhookEvent.objects.update(received_at=timezone.now() - timedelta(minutes=3))
    run_due()
    assert (reload(connection).is_paused, last_delivery().status) == (True, "processed")


# One budget


def test_all_doubtful_events_of_a_batch_share_one_budget(configure: Any) -> None:
    connections = [make_connection() for _ in range(4)]
    payloads = [payload_for(row.customer, row.phone_number_id) for row in connections]
    batch = {"type": DELETED, "batch": True, "data": payloads}
    with FaultyServer() as api:
        api.will(hung())
        configure(API_BASE_URL=api.url, REQUEST_BUDGET=0.3)
        started = time.monotonic()
        assert post(batch).json() == {"received": 4, "duplicates": 0}
        assert time.monotonic() - started < 1
    tried, *rest = WebhookEvent.objects.order_by("pk")
    assert (tried.status, tried.attempts) == ("pending", 1)
    assert {(row.status, row.attempts) for row in rest} == {("pending", 0)}
    assert WebhookEvent.objects.due().count() == 3


def test_replayed_deletion_does_not_disconnect_a_reconnected_number(
    connection: Connection, sandbox: Sandbox
) -> None:
    connection.disconnected_at = timezone.now() - timedelta(minutes=90)
    connection.save()
    with listening() as heard:
        deliver(DELETED, connection)
        WebhookEvent.objects.update(received_at=timezone.now() - timedelta(minutes=5))
        run_due()
    assert heard == []
    assert reload(connection).is_connected
    assert last_delivery().status == "ignored"


# Reconnected


def test_reconnection_is_recorded_when_the_api_confirms_it(
    connection: Connection, sandbox: Sandbox
) -> None:
    closed(connection)
    with listening() as heard:
        deliver(RECONNECTED, connection, at=timezone.now())
    assert heard.names() == ["whatsapp_reconnected"]
    assert heard[0][1]["source"] == "webhook"
    assert reload(connection).is_connected
    assert last_delivery().status == "processed"
    assert TimelineEvent.objects.get().webhook_event == last_delivery()


def test_reconnection_is_not_recorded_when_the_api_contradicts_it(
    connection: Connection, sandbox: Sandbox
) -> None:
    closed(connection)
    sandbox.patch_number(connection.phone_number_id, status="DISCONNECTED")
    with listening() as heard:
        deliver(RECONNECTED, connection, at=timezone.now())
    assert heard == []
    assert not reload(connection).is_connected


def test_reconnection_of_a_connected_number_is_not_announced(connection: Connection) -> None:
    with listening() as heard:
        deliver(RECONNECTED, connection, at=timezone.now())
    assert heard == []
    assert last_delivery().status == "processed"


def test_reconnection_of_an_unknown_number_connects_it(sandbox: Sandbox) -> None:
    customer = remote_customer(sandbox)
    (number,) = sandbox.state()["phone_numbers"]
    payload = payload_for(customer, number["phone_number_id"])
    with listening() as heard:
        post(payload, event=RECONNECTED)
    assert heard.names() == ["whatsapp_connected"]


@pytest.mark.parametrize("how", [DELETED, DISCONNECTED, OFFBOARDED])
def test_replayed_creation_does_not_reconnect(
    connection: Connection, sandbox: Sandbox, how: str
) -> None:
    captured = payload_for(connection.customer, connection.phone_number_id)
    sandbox.send_event(how, phone_number_id=connection.phone_number_id)
    if how == DELETED:
        wait_until_deleted(sandbox, connection)
    deliver(how, connection, at=timezone.now() - timedelta(minutes=5) if how != DELETED else None)
    assert not reload(connection).is_connected
    with listening() as heard:
        assert post(captured, event=CREATED, key=str(uuid.uuid4())).status_code == 200
        long_after_it_was_received()
    assert heard == []
    assert not reload(connection).is_connected
    assert last_delivery().status == "ignored"


def test_creation_replayed_during_the_teardown_waits_and_is_then_ignored(
    connection: Connection, sandbox: Sandbox
) -> None:
    deliver(DISCONNECTED, connection, at=timezone.now())
    with listening() as heard:
        post(payload_for(connection.customer, connection.phone_number_id))  # the API still shows it
        assert last_delivery().status == "pending"
        sandbox.send_event(DELETED, phone_number_id=connection.phone_number_id)
        wait_until_deleted(sandbox, connection)
        long_after_it_was_received()
    assert heard == []
    assert last_delivery().status == "ignored"


def test_number_connected_again_after_its_deletion_is_announced_at_once(
    connection: Connection, sandbox: Sandbox
) -> None:
    deliver(DISCONNECTED, connection, at=timezone.now())
    sandbox.patch_number(
        connection.phone_number_id, created_at=(timezone.now() + timedelta(seconds=1)).isoformat()
    )
    with listening() as heard:
        post(payload_for(connection.customer, connection.phone_number_id))
    assert heard.names() == ["whatsapp_connected"]


def test_deletion_delivered_before_creation_leaves_the_number_disconnected(
    sandbox: Sandbox,
) -> None:
    customer = make_customer()
    with listening() as heard:
        post(payload_for(customer, "77"), event=DELETED)
        post(payload_for(customer, "77"), event=CREATED)  # late; the API does not know it
    assert heard == []
    assert not Connection.objects.get().is_connected


@pytest.mark.parametrize("event", [CREATED, RECONNECTED])
def test_number_that_was_created_again_is_waited_for(
    connection: Connection, sandbox: Sandbox, event: str
) -> None:
    closed(connection)
    sandbox.faults(api=[{"match": "phone_numbers/", "kind": "status", "status": 404, "times": 1}])
    with listening() as heard:
        post(payload_for(connection.customer, connection.phone_number_id), event=event)
        assert last_delivery().status == "pending"
        assert "does not show" in last_delivery().last_error
        run_due()
    assert len(heard) == 1
    assert reload(connection).is_connected
    assert last_delivery().status == "processed"


def test_number_that_the_api_never_shows_is_not_waited_for_again(
    connection: Connection, sandbox: Sandbox
) -> None:
    closed(connection)
    sandbox.faults(api=[{"match": "phone_numbers/", "kind": "status", "status": 404}])
    post(payload_for(connection.customer, connection.phone_number_id))
    assert last_delivery().status == "pending"
    long_after_it_was_received()
    assert last_delivery().status == "ignored"
    assert "Out of date" in last_delivery().last_error


def test_number_that_the_api_does_not_have_after_its_deletion_is_disconnected_at_once(
    connection: Connection, sandbox: Sandbox
) -> None:
    sandbox.faults(api=[{"match": "phone_numbers/", "kind": "status", "status": 404}])
    post(payload_for(connection.customer, connection.phone_number_id), event=DELETED)
    assert not reload(connection).is_connected


def test_while_the_api_is_away_a_reconnection_waits(
    connection: Connection, sandbox: Sandbox
) -> None:
    closed(connection)
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 401}])
    with listening() as heard:
        assert deliver(RECONNECTED, connection, at=timezone.now()).status_code == 200
        assert last_delivery().status == "pending"
        assert "401" in last_delivery().last_error or "key" in last_delivery().last_error
        sandbox.clear_faults()
        run_due()
    assert heard.names() == ["whatsapp_reconnected"]


def test_delivery_fails_if_the_api_stays_away_and_can_be_processed_again(
    connection: Connection, sandbox: Sandbox, configure: Any
) -> None:
    configure(RETRY_LIMIT=2)
    closed(connection)
    sandbox.faults(api=[{"match": ".*", "kind": "status", "status": 401}])
    deliver(RECONNECTED, connection, at=timezone.now())
    run_due()
    assert last_delivery().status == "failed"
    assert last_delivery().last_error
    sandbox.clear_faults()
    assert inbox.process_again(last_delivery())
    assert reload(connection).is_connected


# Moved


def test_number_that_moved_at_kapso_sends_an_event_for_both_customers(
    connection: Connection, sandbox: Sandbox
) -> None:
    former, new = connection.customer, remote_customer(sandbox)
    sandbox.patch_number(connection.phone_number_id, customer_id=new.kapso_id)
    with listening() as heard:
        post(payload_for(new, connection.phone_number_id))
    assert [(name, sent["customer"]) for name, sent in heard] == [
        ("whatsapp_disconnected", former),
        ("whatsapp_connected", new),
    ]
    assert reload(connection).customer == new


def test_number_that_the_api_still_shows_as_anothers_is_waited_for(
    connection: Connection, sandbox: Sandbox
) -> None:
    new = remote_customer(sandbox)
    post(payload_for(new, connection.phone_number_id))
    assert last_delivery().status == "pending"
    sandbox.patch_number(connection.phone_number_id, customer_id=new.kapso_id)
    run_due()
    assert reload(connection).customer == new
    assert last_delivery().status == "processed"


def test_creation_for_a_customer_under_a_new_id_at_kapso_is_not_waited_for(
    connection: Connection, sandbox: Sandbox
) -> None:
    closed(connection)
    payload = payload_for(connection.customer, connection.phone_number_id)
    payload["customer"]["id"] = "another-id-at-kapso"
    post(payload)
    assert reload(connection).is_connected
    assert last_delivery().status == "processed"


def test_replayed_creation_does_not_move_a_number_back(
    connection: Connection, sandbox: Sandbox
) -> None:
    former = make_customer()
    with listening() as heard:
        post(payload_for(former, connection.phone_number_id))
        long_after_it_was_received()
    assert heard == []
    assert reload(connection).customer == connection.customer
    assert last_delivery().status == "ignored"
