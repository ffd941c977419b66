"""Clocks that stand still until a test moves them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from django.conf import settings
from django.utils import timezone as django_timezone


class FakeClock:
    """What the site takes for the current time: ``now``, an aware datetime.

    With USE_TZ off, ``django.utils.timezone.now()`` is the local time in TIME_ZONE, as it is where
    Django has set the process's time zone.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, now: datetime | None = None) -> None:
        self.now = now or datetime.now(timezone.utc)
        monkeypatch.setattr("time.time", lambda: self.now.timestamp())
        monkeypatch.setattr("django.utils.timezone.now", self._django_now)

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def _django_now(self) -> datetime:
        if settings.USE_TZ:
            return self.now
        return django_timezone.make_naive(self.now, django_timezone.get_default_timezone())


class FakeMonotonicTime:
    """The time that a process measures waiting with, which passes only while somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        monkeypatch.setattr("time.monotonic", lambda: self.seconds)
        monkeypatch.setattr("time.sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.seconds += seconds


def summer_time_changes() -> list[Any]:
    """The hours in Berlin in which clocks are put forward and back, in UTC, a second before."""
    return [
        pytest.param(datetime(2026, 3, 29, 0, 59, 59, tzinfo=timezone.utc), id="spring"),
        pytest.param(datetime(2026, 10, 25, 0, 59, 59, tzinfo=timezone.utc), id="autumn"),
    ]
