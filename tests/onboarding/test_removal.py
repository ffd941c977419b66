"""Numbers that staff remove from Kapso: only their customer's, and once."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from kapso_connect import exceptions, onboarding, sync
from kapso_connect.exceptions import KapsoError, KapsoUnavailable
from kapso_connect.kapso.client import KapsoClient
from kapso_connect.models import Connection, Customer
from kapso_connect.onboarding import disconnect
from kapso_connect.onboarding.numbers import Number
from kapso_connect.onboarding.remote_numbers import refresh_number
from kapso_connect.testing import Sandbox

from ..factories import DELETED, listening, make_connection, make_customer, payload_for, post
from .support import at_once, during_request, events, last_delivery, reload, wait_until_deleted

pytestmark = pytest.mark.django_db(transaction=True)

DISCONNECTED = "whatsapp.phone_number.disconnected"
OFFBOARDED = "whatsapp.phone_number.offboarded"
RECONNECTED = "whatsapp.phone_number.reconnected"


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


@pytest.mark.parametrize("is_late", [False, True])
def test_disconnection_by_staff_is_theirs_whether_the_webhook_or_the_answer_is_first(
    sandbox: Sandbox,
    connection: Connection,
    actor: User,
    caplog: pytest.LogCaptureFixture,
    is_late: bool,
) -> None:
    def deliver() -> None:
        post(payload_for(connection.customer, connection.phone_number_id), event=DELETED)

    def delete_and_deliver() -> None:
        sandbox.delete_number(connection.phone_number_id)
        wait_until_deleted(sandbox, connection)
        deliver()
        assert last_delivery().status == "processed"

    def disconnect() -> None:
        onboarding.disconnect_number(connection, actor=actor)

    with listening("whatsapp_disconnected") as heard, caplog.at_level("INFO"):
        if is_late:
            disconnect()
            deliver()
        else:
            during_request(sandbox, "^DELETE", delete_and_deliver, disconnect, kind="hang")
    sent = heard.only("whatsapp_disconnected")
    (event,) = events("disconnected")
    for said in (event, sent["event"]):
        assert (said.data["reason"], said.actor) == ("staff", actor)
        assert said.data.get("event") == (None if is_late else DELETED)
        assert said.source == ("manual" if is_late else "webhook")
    for said in (reload(connection), sent["connection"]):
        assert (said.status, said.disconnect_reason) == ("disconnected", "staff")
    lines = [vars(record) for record in caplog.records]
    (line,) = [line for line in lines if line.get("kapso_event") == "timeline.disconnected"]
    assert (line["reason"], line["actor_id"]) == ("staff", actor.pk)


@pytest.mark.parametrize("attempt", range(5))
@pytest.mark.usefixtures("sqlite_options")
def test_disconnection_by_staff_is_theirs_if_both_are_recorded_at_once(
    sandbox: Sandbox, connection: Connection, actor: User, attempt: int
) -> None:
    def deliver() -> None:
        post(payload_for(connection.customer, connection.phone_number_id), event=DELETED)

    def record_both() -> None:
        sandbox.delete_number(connection.phone_number_id)
        wait_until_deleted(sandbox, connection)
        requested_at = reload(connection).removal_requested_at
        answer = {"reason": "staff"}
        at_once(
            deliver,
            lambda: disconnect(
                connection.phone_number_id,
                source="manual",
                asked_at=requested_at,
                data=answer,
                actor=actor,
                is_gone=True,
            ),
        )

    with listening("whatsapp_disconnected") as heard:
        during_request(
            sandbox,
            "^DELETE",
            record_both,
            lambda: onboarding.disconnect_number(connection, actor=actor),
            kind="hang",
        )
    assert len(heard) == 1
    (event,) = events("disconnected")
    assert (event.data["reason"], event.actor) == ("staff", actor)
    assert reload(connection).disconnect_reason == "staff"


REPORTS: dict[str, Callable[[Connection], object]] = {
    "webhook": lambda number: post(
        payload_for(number.customer, number.phone_number_id), event=DELETED
    ),
    "kapso_sync": lambda number: sync.run(),
    "refresh": lambda number: refresh_number(
        number.phone_number_id, source="manual", client=KapsoClient.from_settings()
    ),
    "staff again": onboarding.disconnect_number,
}
"""What may report that a number is gone."""


def disconnect_in_vain(sandbox: Sandbox, connection: Connection, actor: User, **fault: Any) -> None:
    """Let staff disconnect a number while Kapso answers with an error."""
    sandbox.faults(api=[{"match": "^DELETE", **fault}])
    with pytest.raises(KapsoError):
        onboarding.disconnect_number(connection, actor=actor)
    sandbox.clear_faults()
    assert reload(connection).is_connected


def delete_at_kapso(sandbox: Sandbox, connection: Connection) -> None:
    sandbox.delete_number(connection.phone_number_id)
    wait_until_deleted(sandbox, connection)


@pytest.mark.parametrize(
    ("report", "kind"), [*((name, "status") for name in REPORTS), ("webhook", "garbage")]
)
def test_removal_whose_answer_was_lost_is_still_by_staff(
    sandbox: Sandbox, connection: Connection, actor: User, configure: Any, report: str, kind: str
) -> None:
    configure(API_BUDGET=1.0)
    disconnect_in_vain(sandbox, connection, actor, kind=kind)
    delete_at_kapso(sandbox, connection)
    configure(API_BUDGET=10.0)
    REPORTS[report](connection)
    (event,) = events("disconnected")
    assert (event.data["reason"], event.actor) == ("staff", actor)
    now = reload(connection)
    assert (now.disconnect_reason, now.removal_requested_at) == ("staff", None)
    assert now.removal_requested_by is None


def test_number_that_kapso_shows_as_closed_after_a_lost_answer_is_disconnected_by_staff(
    sandbox: Sandbox, connection: Connection, actor: User
) -> None:
    ask_for_removal(connection, actor)
    sandbox.patch_number(connection.phone_number_id, status="DISCONNECTED")
    sync.run()
    (event,) = events("disconnected")
    assert (event.data["reason"], event.actor) == ("staff", actor)


REFUSALS: dict[str, dict[str, Any]] = {
    "credentials": {"kind": "status", "status": 401},
    "validation": {"kind": "status", "status": 422},
    "blocked": {"kind": "cloudflare"},
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_removal_that_kapso_refused_is_forgotten(
    sandbox: Sandbox, connection: Connection, actor: User, refusal: str
) -> None:
    disconnect_in_vain(sandbox, connection, actor, **REFUSALS[refusal])
    delete_at_kapso(sandbox, connection)
    REPORTS["webhook"](connection)
    (event,) = events("disconnected")
    assert (event.data["reason"], event.actor) == ("deleted", None)
    assert reload(connection).disconnect_reason == "deleted"


def test_refused_removal_leaves_the_request_of_another_member_of_staff(
    sandbox: Sandbox, connection: Connection, actor: User
) -> None:
    def other_asks() -> None:
        ask_for_removal(connection, User.objects.create_user("grace"))

    refusal = {"match": "^DELETE", "kind": "status", "status": 422}
    with pytest.raises(KapsoError):
        during_request(
            sandbox,
            "^DELETE",
            other_asks,
            lambda: onboarding.disconnect_number(connection, actor=actor),
            kind="hang",
            rules_afterwards=(refusal,),
        )
    assert str(reload(connection).removal_requested_by) == "grace"


def ask_for_removal(
    connection: Connection, actor: User | None, *, ago: timedelta = timedelta()
) -> None:
    """Record what a request to Kapso leaves behind whose answer was lost."""
    Connection.objects.filter(pk=connection.pk).update(
        removal_requested_at=timezone.now() - ago, removal_requested_by=actor
    )


@pytest.mark.parametrize(("minutes", "reason"), [(59, "staff"), (61, "deleted")])
def test_removal_counts_for_an_hour(
    sandbox: Sandbox, connection: Connection, actor: User, minutes: int, reason: str
) -> None:
    Connection.objects.update(connected_at=timezone.now() - timedelta(hours=2))
    ask_for_removal(connection, actor, ago=timedelta(minutes=minutes))
    delete_at_kapso(sandbox, connection)
    REPORTS["webhook"](connection)
    (event,) = events("disconnected")
    assert (event.data["reason"], event.actor) == (reason, actor if reason == "staff" else None)


@pytest.mark.parametrize(("seconds", "reason"), [(-1, "left"), (0, "staff"), (1, "staff")])
def test_what_happened_before_the_removal_was_asked_for_is_not_by_staff(
    sandbox: Sandbox, connection: Connection, actor: User, seconds: int, reason: str
) -> None:
    """The signed time of a webhook may be that of a whole second."""
    ask_for_removal(connection, actor)
    requested_at = reload(connection).removal_requested_at
    assert requested_at is not None
    withdraw(connection, at=requested_at.replace(microsecond=0) + timedelta(seconds=seconds))
    (event,) = events("disconnected")
    assert event.data["reason"] == reason
    assert event.data["initiated_by"] == "customer"


def withdraw(connection: Connection, *, at: datetime) -> None:
    """Deliver that the customer has withdrawn the number."""
    report(
        DISCONNECTED,
        connection,
        at=at,
        disconnection={"reason": "left", "initiated_by": "customer"},
    )


def report(event: str, connection: Connection, *, at: datetime, **more: Any) -> None:
    number = connection.phone_number_id
    signed = {"id": str(uuid.uuid4()), "event": event, "occurred_at": at.isoformat(), **more}
    assert post(payload_for(connection.customer, number, **signed), event=event).status_code == 200


def test_replayed_webhook_alone_makes_no_disconnection_by_staff(
    sandbox: Sandbox, connection: Connection, actor: User
) -> None:
    ask_for_removal(connection, actor)
    captured = payload_for(connection.customer, connection.phone_number_id)
    for event in (DELETED, DISCONNECTED, OFFBOARDED):
        post(captured, event=event)
    assert reload(connection).is_connected
    assert events("disconnected") == []


def test_disconnection_after_a_reconnection_is_not_by_staff(
    sandbox: Sandbox, connection: Connection, actor: User
) -> None:
    ask_for_removal(connection, actor, ago=timedelta(minutes=10))
    now = timezone.now()
    report(RECONNECTED, connection, at=now - timedelta(minutes=5))
    withdraw(connection, at=now)
    (event,) = events("disconnected")
    assert (event.data["reason"], event.actor) == ("left", None)


def test_removal_is_forgotten_once_the_customer_has_used_a_link_again(
    sandbox: Sandbox, connection: Connection, actor: User
) -> None:
    link = onboarding.create_setup_link(connection.customer)
    ask_for_removal(connection, actor)
    number = Number(connection.phone_number_id)
    onboarding.connect(connection.customer, number, source="webhook", setup_link=link)
    assert reload(connection).removal_requested_at is None
    assert reload(connection).removal_requested_by is None


def test_removal_is_forgotten_when_the_number_is_connected_again(
    sandbox: Sandbox, connection: Connection, actor: User
) -> None:
    Connection.objects.update(
        status="disconnected", disconnected_at=timezone.now() - timedelta(minutes=30)
    )
    ask_for_removal(connection, actor)
    number = Number(connection.phone_number_id)
    onboarding.connect(connection.customer, number, source="sync", asked_at=timezone.now())
    assert reload(connection).removal_requested_at is None


def test_number_that_moves_is_not_disconnected_by_staff(
    sandbox: Sandbox, connection: Connection, actor: User, new_owner: str
) -> None:
    ask_for_removal(connection, actor)
    with pytest.raises(exceptions.NumberMoved):
        onboarding.check_health(connection)
    (event,) = events("disconnected")
    assert (event.data["reason"], event.actor) == ("moved", None)
    assert reload(connection).removal_requested_at is None
    assert reload(connection).removal_requested_by is None


def test_number_that_kapso_still_has_without_a_customer_is_not_disconnected_by_staff(
    sandbox: Sandbox, connection: Connection, actor: User
) -> None:
    ask_for_removal(connection, actor)
    sandbox.patch_number(connection.phone_number_id, customer_id=None)
    sync.run()
    (event,) = events("disconnected")
    assert (event.data["reason"], event.actor) == ("no_customer", None)


@pytest.mark.parametrize("is_lost", [False, True])
def test_pause_while_the_number_is_being_removed_is_a_disconnection_of_its_own(
    sandbox: Sandbox, connection: Connection, actor: User, is_lost: bool
) -> None:
    """It is Meta's; the removal ends it for good, whatever reports that."""

    def pause() -> None:
        report(OFFBOARDED, connection, at=timezone.now())

    with listening("whatsapp_disconnected") as heard:
        if is_lost:
            ask_for_removal(connection, actor)
            pause()
            delete_at_kapso(sandbox, connection)
            sync.run()
        else:
            during_request(
                sandbox,
                "^DELETE",
                pause,
                lambda: onboarding.disconnect_number(connection, actor=actor),
                kind="hang",
            )
    said = [(sent["event"].data["reason"], sent["event"].actor) for _, sent in heard]
    assert said == [("offboarded", None), ("staff", actor)]
    assert reload(connection).disconnect_reason == "staff"
    connection.customer.refresh_from_db()
    assert connection.customer.status == "disconnected"


def test_disconnection_by_a_user_who_was_deleted_meanwhile_is_by_staff(
    sandbox: Sandbox, connection: Connection, actor: User
) -> None:
    ask_for_removal(connection, actor)
    actor.delete()
    delete_at_kapso(sandbox, connection)
    REPORTS["webhook"](connection)
    (event,) = events("disconnected")
    assert (event.data["reason"], event.actor) == ("staff", None)


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
