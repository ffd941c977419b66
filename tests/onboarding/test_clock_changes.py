"""What decides by times while local clocks are put forward and back, with USE_TZ off."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from django.utils import timezone as django_timezone

from kapso_connect.exceptions import NeedsConfirmation, TryLater
from kapso_connect.kapso.client import KapsoClient
from kapso_connect.kapso.types import KapsoSetupLink, parse_moment
from kapso_connect.models import Invitation, SetupLink, TimelineEvent, WebhookEvent
from kapso_connect.onboarding import invitations, setup_links
from kapso_connect.onboarding.accounts import update_account
from kapso_connect.onboarding.disconnections import disconnect
from kapso_connect.onboarding.remote_numbers import refresh_number
from kapso_connect.onboarding.renewal import usable_setup_link
from kapso_connect.utils import as_aware
from kapso_connect.webhooks import payloads

from ..clock import FakeClock, summer_time_changes
from ..factories import make_connection, make_customer, make_link
from ..faulty_server import FaultyServer, answer, broken_off

pytestmark = pytest.mark.django_db(transaction=True)

BEFORE_AUTUMN = datetime(2026, 10, 25, 0, 50, tzinfo=timezone.utc)
"""In Berlin: ten minutes before clocks are put back from three to two."""

AFTER_SPRING = datetime(2026, 3, 29, 1, 0, 10, tzinfo=timezone.utc)
"""In Berlin: ten seconds after clocks were put forward from two to three."""


@pytest.fixture
def clock(settings: Any, monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    settings.USE_TZ = False
    settings.TIME_ZONE = "Europe/Berlin"
    return FakeClock(monkeypatch, BEFORE_AUTUMN)


def remote_link(created_at: datetime) -> dict[str, Any]:
    return {
        "id": str(uuid.uuid4()),
        "status": "active",
        "created_at": created_at.isoformat(),
        "url": "https://setup.example/token",
    }


def page(*rows: dict[str, Any]) -> dict[str, Any]:
    meta = {"page": 1, "per_page": 100, "total_pages": 1, "total_count": len(rows)}
    return {"data": list(rows), "meta": meta}


def record_link(customer: Any, clock: FakeClock) -> SetupLink:
    remote = KapsoSetupLink(
        id=str(uuid.uuid4()),
        status="active",
        created_at=parse_moment(clock.now.isoformat()),
        url="https://setup.example/token",
    )
    request = setup_links.prepare(customer)
    [link] = setup_links.record([(request, remote)])
    assert link is not None
    return link


def test_decision_about_an_account_is_newer_than_its_connection(clock: FakeClock) -> None:
    connection = make_connection(business_account_id="1")
    clock.advance(20 * 60)
    changed = update_account(
        "disabled",
        business_account_id="1",
        phone_number_ids=[],
        source="webhook",
        occurred_at=django_timezone.now(),
    )
    assert changed == (1, 1)
    connection.refresh_from_db()
    assert connection.account_status == "disabled"


def test_what_happened_before_a_number_was_connected_does_not_close_it(clock: FakeClock) -> None:
    happened = django_timezone.now()
    clock.advance(20 * 60)
    connection = make_connection()
    clock.advance(45 * 60)
    with pytest.raises(NeedsConfirmation):
        disconnect(
            connection.phone_number_id,
            source="webhook",
            webhook_event=WebhookEvent(),
            occurred_at=happened,
        )


def test_event_has_its_own_time_unless_that_is_in_the_future(clock: FakeClock) -> None:
    clock.advance(20 * 60)
    for text, expected in [
        ("2026-10-25T00:50:00Z", BEFORE_AUTUMN),
        ("2026-10-25T01:50:00Z", clock.now),
    ]:
        moment = payloads.occurred_at({"occurred_at": text})
        assert moment is not None
        assert as_aware(moment) == expected


def test_link_that_was_created_later_is_the_latest(clock: FakeClock) -> None:
    customer = make_customer()
    first = record_link(customer, clock)
    clock.advance(20 * 60)
    second = record_link(customer, clock)
    customer.refresh_from_db()
    assert customer.latest_setup_link == second
    assert second.status == "active"
    first.refresh_from_db()
    assert first.status == "revoked"


@pytest.mark.parametrize("now", summer_time_changes())
def test_link_whose_answer_was_lost_is_found(
    clock: FakeClock, now: datetime, configure: Any
) -> None:
    clock.now = now
    request = setup_links.prepare(make_customer())
    created = remote_link(now + timedelta(seconds=2))
    with FaultyServer() as server:
        configure(API_BASE_URL=server.url)
        server.will(broken_off(), answer(200, page(created)))
        with KapsoClient.from_settings() as client:
            assert setup_links.ask(request, client).id == created["id"]
    asked = server.requests[-1].query["created_after"]
    assert datetime.fromisoformat(asked) == now - setup_links.CLOCK_SKEW


def test_link_of_the_first_minute_of_summer_time_is_found_at_kapso(
    clock: FakeClock, configure: Any
) -> None:
    clock.now = AFTER_SPRING
    link = make_link()
    with FaultyServer() as server:
        configure(API_BASE_URL=server.url)
        server.will(answer(200, page({**remote_link(clock.now), "id": link.kapso_id})))
        assert usable_setup_link(link.customer) == link
    asked = server.requests[-1].query["created_after"]
    assert datetime.fromisoformat(asked) < AFTER_SPRING


def test_number_that_was_just_connected_is_not_taken_as_gone(
    clock: FakeClock, configure: Any
) -> None:
    clock.now = AFTER_SPRING - timedelta(seconds=20)
    connection = make_connection()
    clock.now = AFTER_SPRING
    event = WebhookEvent.objects.create(idempotency_key="k", event="e", payload={})
    with FaultyServer() as server:
        configure(API_BASE_URL=server.url)
        server.will(answer(404, {"error": "WhatsApp configuration not found"}))
        with KapsoClient.from_settings() as client, pytest.raises(TryLater):
            refresh_number(
                connection.phone_number_id, source="webhook", client=client, webhook_event=event
            )


def test_link_that_was_recorded_after_a_batch_was_started_is_its_link(
    clock: FakeClock, configure: Any
) -> None:
    configure(API_BASE_URL="http://127.0.0.1:9")
    customer = make_customer()
    batch = invitations.make_batch([customer.pk])
    invitations.start(batch)
    clock.advance(20 * 60)
    link = record_link(customer, clock)
    TimelineEvent.objects.update(occurred_at=django_timezone.now())
    invitations.work(batch.pk)
    assert Invitation.objects.get().setup_link == link
