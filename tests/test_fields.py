"""Moments, stored independently of the site's time zone."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from django.core import serializers
from django.core.exceptions import ValidationError
from django.db.models import Max, Min

from kapso_connect.models import WebhookEvent

pytestmark = pytest.mark.django_db

MOMENT = datetime(2026, 10, 25, 1, 30, 0, 123456, tzinfo=timezone.utc)
"""In Berlin: the second time that it is half past two on that day."""


def make(moment: datetime | None, key: str = "key") -> WebhookEvent:
    return WebhookEvent.objects.create(
        idempotency_key=key, event="e", payload={}, next_attempt_at=moment
    )


@pytest.fixture(params=[True, False], ids=["USE_TZ", "no USE_TZ"])
def use_tz(request: pytest.FixtureRequest, settings: Any) -> bool:
    settings.USE_TZ = request.param
    settings.TIME_ZONE = "Europe/Berlin"
    return request.param


def test_a_moment_is_read_as_it_was_written(use_tz: bool) -> None:
    event = make(MOMENT)
    event.refresh_from_db()
    assert event.next_attempt_at == MOMENT
    assert event.next_attempt_at.tzinfo is timezone.utc
    earlier = MOMENT.astimezone(timezone(timedelta(hours=-8))) - timedelta(microseconds=1)
    event.next_attempt_at = earlier
    WebhookEvent.objects.bulk_update([event], ["next_attempt_at"])
    event.refresh_from_db()
    assert event.next_attempt_at == earlier
    event.next_attempt_at = None
    event.save()
    event.refresh_from_db()
    assert event.next_attempt_at is None


def test_moments_are_compared_and_ordered(use_tz: bool) -> None:
    hour = timedelta(hours=1)
    for key, moment in {"c": MOMENT + hour, "a": MOMENT - hour, "b": MOMENT, "d": None}.items():
        make(moment, key)
    rows = WebhookEvent.objects.order_by("next_attempt_at")
    found = rows.filter(next_attempt_at__lte=MOMENT)
    assert list(found.values_list("idempotency_key", flat=True)) == ["a", "b"]
    assert rows.get(next_attempt_at=MOMENT).idempotency_key == "b"
    assert rows.aggregate(first=Min("next_attempt_at"), last=Max("next_attempt_at")) == {
        "first": MOMENT - hour,
        "last": MOMENT + hour,
    }


def test_a_naive_moment_is_local_time(settings: Any) -> None:
    settings.TIME_ZONE = "Europe/Berlin"
    event = make(datetime(2026, 7, 1, 12, 0))
    event.refresh_from_db()
    assert event.next_attempt_at == datetime(2026, 7, 1, 10, 0, tzinfo=timezone.utc)


@pytest.mark.parametrize("moment", [MOMENT, None])
def test_moments_survive_dumpdata_and_loaddata(use_tz: bool, moment: datetime | None) -> None:
    if moment is not None:
        moment = moment.replace(microsecond=123000)  # JSON has no more digits
    event = make(moment)
    for form in ("json", "xml"):
        dumped = serializers.serialize(form, [event])
        event.delete()
        (loaded,) = serializers.deserialize(form, dumped)
        loaded.save()
        event = WebhookEvent.objects.get()
        assert event.next_attempt_at == moment


def test_what_is_no_moment_is_refused() -> None:
    with pytest.raises(ValidationError, match="not a date and time"):
        WebhookEvent.objects.filter(next_attempt_at="soon").exists()
