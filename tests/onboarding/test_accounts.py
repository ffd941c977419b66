"""The health of numbers, and Meta's decisions about their accounts."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from kapso_connect import onboarding
from kapso_connect.exceptions import KapsoRateLimited
from kapso_connect.kapso.client import KapsoClient
from kapso_connect.kapso.types import KapsoHealth
from kapso_connect.models import Connection, TimelineEvent, WebhookEvent
from kapso_connect.onboarding.funding import refresh_funding
from kapso_connect.onboarding.numbers import Number
from kapso_connect.testing import Sandbox
from kapso_connect.webhooks import inbox

from ..factories import SentSignals, listening, make_connection, make_link, post
from ..faulty_server import FaultyServer, answer
from .support import events, last_delivery, reload

pytestmark = pytest.mark.django_db(transaction=True)


# Health


def test_health_is_recorded_with_its_errors_and_who_asked(
    sandbox: Sandbox, connection: Connection, actor: User
) -> None:
    sandbox.patch_number(connection.phone_number_id, payment_problem=True)
    onboarding.check_health(connection, actor=actor)
    connection.refresh_from_db()
    assert connection.health_status == "unhealthy"
    assert connection.health_error.startswith("messaging_health: There is an error with the paym")
    assert connection.health_problems == [
        {
            "check": "messaging_health",
            "entity": "WABA",
            "code": "141006",
            "description": "There is an error with the payment method.",
            "solution": "Add a valid payment method to the WhatsApp Business Account at Meta.",
        }
    ]
    assert connection.health_checked_at
    assert connection.health_retry_after is None
    (event,) = events("health_checked")
    assert (event.actor, event.data["status"]) == (actor, "unhealthy")
    sandbox.patch_number(connection.phone_number_id, payment_problem=False)
    onboarding.check_health(connection)
    connection.refresh_from_db()
    assert (connection.health_status, connection.health_problems) == ("healthy", [])


def test_held_answer_is_not_asked_for_again(sandbox: Sandbox, connection: Connection) -> None:
    sandbox.patch_number(connection.phone_number_id, access_error="Token expired")
    onboarding.check_health(connection)
    connection.refresh_from_db()
    held_until = connection.health_retry_after
    assert held_until is not None
    assert timedelta(minutes=4) < held_until - timezone.now() < timedelta(minutes=6)
    before = len(sandbox.requests())
    again = onboarding.check_health(connection)
    assert (again.status, again.error, again.retry_after) == ("error", "Token expired", held_until)
    assert again.timestamp == connection.health_checked_at
    assert len(sandbox.requests()) == before
    assert len(events("health_checked")) == 1
    # Once the time is over, and after the number was connected again, Kapso is asked.
    Connection.objects.update(health_retry_after=timezone.now())
    connection.refresh_from_db()
    onboarding.check_health(connection)
    assert len(events("health_checked")) == 2
    now = timezone.now()
    link = make_link(connection.customer)
    number = Number(connection.phone_number_id)
    onboarding.connect(connection.customer, number, source="sync", setup_link=link, asked_at=now)
    connection.refresh_from_db()
    assert connection.health_retry_after is None
    Connection.objects.update(
        status="disconnected", disconnected_at=now, health_retry_after=now + timedelta(hours=1)
    )
    onboarding.connect(
        connection.customer, number, source="sync", asked_at=now + timedelta(seconds=1)
    )
    connection.refresh_from_db()
    assert connection.health_retry_after is None


def test_answer_is_held_for_an_hour_at_most(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = timezone.now()
    odd = KapsoHealth("error", now, error="no", retry_after=now + timedelta(days=9000))
    monkeypatch.setattr(KapsoClient, "get_phone_number_health", lambda *args: odd)
    onboarding.check_health(connection)
    connection.refresh_from_db()
    assert connection.health_retry_after is not None
    assert connection.health_retry_after < now + timedelta(minutes=61)


def test_unknown_health_status_is_recorded_as_an_error(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = KapsoHealth(status="purple", timestamp=timezone.now(), error="x" * 5000)
    monkeypatch.setattr(KapsoClient, "get_phone_number_health", lambda *args: odd)
    onboarding.check_health(connection)
    connection.refresh_from_db()
    assert (connection.health_status, len(connection.health_error)) == ("error", 2000)


@pytest.mark.parametrize(
    ("status", "recorded"), [("funded", "funded"), ("revoked", "revoked"), (None, "")]
)
def test_health_check_asks_whether_kapso_pays_meta(
    sandbox: Sandbox, connection: Connection, status: str | None, recorded: str
) -> None:
    options = {"meta_billing_mode": "partner_managed"}
    connection.setup_link = make_link(connection.customer, options=options)
    account = sandbox.state()["phone_numbers"][0]["business_account_id"]
    connection.business_account_id = account
    connection.save()
    if status:
        sandbox.set_funding(account, status)
    else:
        sandbox.faults(api=[{"match": "/funding", "kind": "status", "status": 500}])
    onboarding.check_health(connection)
    assert connection.funding_status == recorded
    connection.refresh_from_db()
    assert (connection.health_status, connection.funding_status) == ("healthy", recorded)
    assert connection.funding_checked_at is not None


def test_unknown_funding_status_is_recorded_as_unknown(
    connection: Connection, configure: Any
) -> None:
    options = {"meta_billing_mode": "partner_managed"}
    connection.setup_link = make_link(connection.customer, options=options)
    connection.business_account_id = "waba-1"
    connection.save()
    with FaultyServer() as kapso:
        kapso.will(answer(200, {"data": {"status": "perhaps"}}))
        configure(API_BASE_URL=kapso.url)
        with KapsoClient.from_settings() as client:
            assert refresh_funding(connection, client)
            assert not refresh_funding(connection, client)
    connection.refresh_from_db()
    assert connection.funding_status == "unknown"


def test_rate_limited_health_check_records_nothing(
    sandbox: Sandbox, connection: Connection
) -> None:
    sandbox.faults(api=[{"kind": "status", "status": 429, "retry_after": 60}])
    with pytest.raises(KapsoRateLimited):
        onboarding.check_health(connection)
    connection.refresh_from_db()
    assert (connection.health_status, events("health_checked")) == ("", [])


# Meta's decisions


def account(
    name: str, connection: Connection, *, at: datetime | None = None, **more: Any
) -> dict[str, Any]:
    return {
        "id": str(uuid.uuid4()),
        "event": f"whatsapp.account.{name}",
        "occurred_at": (at or timezone.now()).isoformat(),
        "business_account_id": connection.business_account_id,
        "project": {"id": str(uuid.uuid4())},
        "phone_numbers": [
            {"id": connection.phone_number_id, "display_phone_number": "+1 415-555-2671"}
        ],
        **more,
    }


def decide(payload: dict[str, Any]) -> SentSignals:
    with listening() as heard:
        assert post(payload, event=payload["event"]).status_code == 200
    return heard


def test_restriction_is_recorded_and_announced(connection: Connection) -> None:
    restrictions = [{"type": "RESTRICTED_BIZ_INITIATED_MESSAGING", "expires_at": "2026-12-01"}]
    at = timezone.now()
    heard = decide(account("restricted", connection, at=at, restrictions=restrictions))
    sent = heard.only("whatsapp_account_updated")
    assert sent["connection"] == connection
    assert sent["customer"] == connection.customer
    assert sent["event"].data["event"] == "restricted"
    assert sent["event"].data["restrictions"] == restrictions
    now = reload(connection)
    assert (now.account_status, now.restrictions) == ("restricted", restrictions)
    assert now.account_updated_at == at
    assert now.is_connected


def test_ban_and_its_end(connection: Connection) -> None:
    ban = {"state": "DISABLE", "date_label": "2026-11-22"}
    heard = decide(account("disabled", connection, ban=ban))
    assert heard.only("whatsapp_account_updated")["event"].data["ban"] == ban
    assert reload(connection).account_status == "disabled"
    decide(account("reinstated", connection))
    assert reload(connection).account_status == "active"
    assert reload(connection).restrictions == []


def test_violation_is_announced_and_changes_no_status(connection: Connection) -> None:
    violation = {"type": "SPAM", "remediation": "Stop it."}
    heard = decide(account("violation", connection, violation=violation))
    assert heard.only("whatsapp_account_updated")["event"].data["violation"] == violation
    assert reload(connection).account_status == "active"


def test_decision_is_announced_for_each_affected_number(connection: Connection) -> None:
    # One is listed, one belongs to the account, one belongs to it and is disconnected.
    other = make_connection(business_account_id="other")
    same = make_connection(business_account_id=connection.business_account_id)
    make_connection(business_account_id=connection.business_account_id, status="disconnected")
    make_connection(business_account_id="unrelated")
    payload = account("disabled", connection)
    payload["phone_numbers"].append({"id": other.phone_number_id})
    heard = decide(payload)
    assert {sent["connection"].pk for _, sent in heard} == {connection.pk, other.pk, same.pk}


def test_late_decision_does_not_undo_a_newer_one(connection: Connection) -> None:
    decide(account("reinstated", connection))
    heard = decide(account("disabled", connection, at=timezone.now() - timedelta(hours=1)))
    assert heard == []
    assert reload(connection).account_status == "active"
    assert last_delivery().status == "ignored"


@pytest.mark.parametrize("name", ["violation", "disabled"])
def test_replayed_decision_is_announced_once(connection: Connection, name: str) -> None:
    payload = account(name, connection)
    assert len(decide(payload)) == 1
    assert decide(payload) == []
    assert decide({**payload, "project": {}}) == []  # the same event in another body
    assert last_delivery().status == "ignored"


def test_decision_about_the_number_of_the_documentation_is_a_test(connection: Connection) -> None:
    sample = [{"id": "123456789012345"}]
    decide(account("disabled", connection, business_account_id="nobody", phone_numbers=sample))
    assert last_delivery().status == "ignored"
    assert "test delivery" in last_delivery().last_error


def test_decision_about_an_account_of_another_site_is_ignored(connection: Connection) -> None:
    payload = account("disabled", connection, business_account_id="nobody", phone_numbers=[])
    assert decide(payload) == []
    assert last_delivery().status == "ignored"
    assert "nobody" in last_delivery().last_error


@pytest.mark.parametrize("name", ["disabled", "restricted", "reinstated", "violation"])
def test_decision_from_before_the_number_was_connected_does_not_concern_it(
    connection: Connection, name: str
) -> None:
    assert connection.connected_at is not None
    before = connection.connected_at - timedelta(seconds=1)
    assert decide(account(name, connection, at=before)) == []
    assert reload(connection).account_status == "active"
    assert last_delivery().status == "ignored"
    assert "Out of date" in last_delivery().last_error


def test_decision_from_the_future_happened_now(connection: Connection) -> None:
    decide(account("disabled", connection, at=timezone.now() + timedelta(days=400)))
    updated_at = reload(connection).account_updated_at
    assert updated_at is not None
    assert updated_at <= timezone.now()
    decide(account("reinstated", connection))
    assert reload(connection).account_status == "active"


def test_decision_without_a_time_fails(connection: Connection) -> None:
    payload = account("disabled", connection)
    del payload["occurred_at"]
    assert decide(payload) == []
    assert (last_delivery().status, reload(connection).account_status) == ("failed", "active")
    assert "occurred_at is missing" in last_delivery().last_error


PROOFS = [
    ("restricted", {"restrictions": [{"type": "X"}]}),
    ("restricted", {"source": {"event": "ACCOUNT_RESTRICTION"}}),
    ("violation", {"violation": {"type": "SPAM"}}),
    ("violation", {"source": {"event": "ACCOUNT_VIOLATION"}}),
    ("disabled", {"ban": {"state": "DISABLE"}, "source": {"event": "DISABLED_UPDATE"}}),
    ("reinstated", {"ban": {"state": "REINSTATE"}, "source": {"event": "DISABLED_UPDATE"}}),
]


@pytest.mark.parametrize(
    ("name", "proven", "contents"),
    [
        pytest.param(name, *proof, marks=() if is_telling else pytest.mark.slow)
        for place, proof in enumerate(PROOFS)
        for column, name in enumerate(["restricted", "violation", "disabled", "reinstated"])
        # What the body bears out, and one that it does not.
        for is_telling in [name == proof[0] or column == (place + 1) % 4]
    ],
)
def test_decision_that_only_a_header_names_counts_if_the_body_bears_it_out(
    connection: Connection, name: str, proven: str, contents: dict[str, Any]
) -> None:
    payload = account(name, connection, **contents)
    del payload["event"]
    with listening() as heard:
        post(payload, event=f"whatsapp.account.{name}")
    if name == proven:
        assert heard.names() == ["whatsapp_account_updated"]
        assert last_delivery().status == "processed"
    else:
        assert heard == []
        assert last_delivery().status == "failed"
        assert "not signed" in last_delivery().last_error


def test_decision_named_in_a_signed_envelope_can_be_processed_again(connection: Connection) -> None:
    payload = account("disabled", connection)
    name = payload.pop("event")
    post({"event": name, "data": payload}, event=name)
    Connection.objects.update(account_status="active", account_updated_at=None)
    TimelineEvent.objects.all().delete()
    WebhookEvent.objects.update(status="failed")
    assert inbox.process_again(last_delivery())
    assert reload(connection).account_status == "disabled"
