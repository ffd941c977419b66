"""Leases and delays while local clocks are put forward and back, with USE_TZ off."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from kapso_connect import onboarding, outbox
from kapso_connect.models import (
    IdempotentRequest,
    SetupLink,
    TimelineEvent,
    WebhookEvent,
)
from kapso_connect.monitoring.queues import read_queues
from kapso_connect.onboarding import numbers
from kapso_connect.signals import whatsapp_connected

from .clock import FakeClock, summer_time_changes
from .factories import make_customer, make_link, new_number_id

pytestmark = [pytest.mark.django_db, pytest.mark.parametrize("now", summer_time_changes())]


@pytest.fixture
def clock(now: datetime, settings: Any, monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    settings.USE_TZ = False
    settings.TIME_ZONE = "Europe/Berlin"
    return FakeClock(monkeypatch, now)


def acquire_delivery() -> bool:
    if not WebhookEvent.objects.exists():
        WebhookEvent.objects.create(idempotency_key="k", event="e", payload={})
    return WebhookEvent.objects.get().acquire_lease()


def acquire_renewal() -> bool:
    if not SetupLink.objects.exists():
        make_link()
    return bool(SetupLink.objects.acquire_lease(300))


def acquire_idempotency_key() -> bool:
    IdempotentRequest.objects.get_or_create(digest="d", fingerprint="f")
    return bool(IdempotentRequest.objects.acquire_lease(300))


@pytest.mark.parametrize("acquire", [acquire_delivery, acquire_renewal, acquire_idempotency_key])
def test_leases_last_as_long_as_they_should(clock: FakeClock, acquire: Any) -> None:
    assert acquire()
    clock.advance(2)
    assert not acquire()
    clock.advance(297)
    assert not acquire()
    clock.advance(2)
    assert acquire()


def test_leases_acquired_together_last_as_long_as_they_should(clock: FakeClock) -> None:
    WebhookEvent.objects.create(idempotency_key="k", event="e", payload={})
    assert len(WebhookEvent.objects.lease_due(10)) == 1
    clock.advance(299)
    assert WebhookEvent.objects.lease_due(10) == []
    clock.advance(2)
    assert len(WebhookEvent.objects.lease_due(10)) == 1


@pytest.mark.django_db(transaction=True)
def test_delays_last_as_long_as_they_should(clock: FakeClock) -> None:
    calls = []

    def broken(**kwargs: Any) -> None:
        calls.append(1)
        raise RuntimeError

    whatsapp_connected.connect(broken)
    try:
        onboarding.connect(make_customer(), numbers.Number(new_number_id()), source="webhook")
        event = TimelineEvent.objects.latest("pk")
        for seconds, expected in [(2, 1), (12, 1), (2, 2), (28, 2), (3, 3)]:
            clock.advance(seconds)
            for due in TimelineEvent.objects.undelivered().due():
                outbox.deliver(due.pk)
            assert len(calls) == expected
    finally:
        whatsapp_connected.disconnect(broken)
    event.refresh_from_db()
    assert event.attempts == 3


def test_age_of_the_oldest_work_is_the_true_one(clock: FakeClock) -> None:
    WebhookEvent.objects.create(idempotency_key="k", event="e", payload={})
    clock.advance(30)
    assert {queue.name: queue.lag for queue in read_queues()} == {"webhooks": 30, "signals": 0}
    assert WebhookEvent.objects.due().count() == 1
    WebhookEvent.objects.update(next_attempt_at=clock.now + timedelta(seconds=1))
    assert WebhookEvent.objects.due().count() == 0
