from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone

from kapso_connect.utils import time_since

from .clock import FakeClock, summer_time_changes


@pytest.mark.parametrize("use_tz", [True, False])
@pytest.mark.parametrize("now", summer_time_changes())
def test_time_since_a_moment_before_clocks_were_changed(
    now: datetime, settings: Any, monkeypatch: pytest.MonkeyPatch, use_tz: bool
) -> None:
    settings.USE_TZ = use_tz
    settings.TIME_ZONE = "Europe/Berlin"
    clock = FakeClock(monkeypatch, now)
    moment = timezone.now()
    for seconds in (0, 2, 60):
        clock.advance(seconds)
        assert time_since(moment) == clock.now - now
    # A moment that happens twice counts as the later one, once that has passed.
    moment = timezone.now()
    clock.advance(5)
    assert time_since(moment) == timedelta(seconds=5)
