"""When a customer's page may ask Kapso's API.

Each question may hold a worker of the web server for ``REQUEST_BUDGET`` seconds, and whoever knows
a setup link's id can cause one. Kapso's webhooks wait behind them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from django.core.cache import cache
from django.db.models import Q

from ..conf import get_conf
from ..models import SetupLink
from ..utils import utc_now
from .rate_limit import is_question_allowed, try_cache

MIN_PAUSE = timedelta(seconds=2)
"""The time between two questions about one setup link."""

QUESTION_MARGIN = 10.0
"""Seconds. A process that has not returned this long after ``REQUEST_BUDGET`` has died."""

SLOW_SECONDS = 2.0
"""What takes this long was slow, answered or not."""

SLOW_PAUSE = 10
"""Seconds for which no page asks after a slow question."""

SLOW_KEY = "kapso_connect.api_is_slow"


@contextmanager
def question_about(link: SetupLink, *, by_visitor: bool) -> Iterator[bool]:
    """Yield whether Kapso may be asked about ``link`` inside this context.

    One process asks about a link at a time: the database decides. The limit, and the pause of all
    pages after a slow question, need a working cache; processes have them together if they share
    it.
    """
    rows, now = SetupLink.objects.filter(pk=link.pk), utc_now()
    if is_slow():
        yield False
        return
    lease = now + timedelta(seconds=get_conf().request_budget + QUESTION_MARGIN)
    is_free = Q(next_question_at=None) | Q(next_question_at__lte=now)
    if not rows.filter(is_free).update(next_question_at=lease):
        yield False
        return
    try:
        if is_question_allowed(link, by_visitor=by_visitor):
            with noting_slowness():
                yield True
        else:
            yield False
    finally:
        pause = utc_now() + MIN_PAUSE
        rows.filter(next_question_at=lease).update(next_question_at=pause)


@contextmanager
def noting_slowness() -> Iterator[None]:
    """Let ``is_slow`` return True for ``SLOW_PAUSE`` seconds if what is done inside takes long."""
    started = time.monotonic()
    try:
        yield
    finally:
        if time.monotonic() - started >= SLOW_SECONDS:
            try_cache(lambda: cache.set(SLOW_KEY, True, SLOW_PAUSE))


def is_slow() -> bool:
    """Return whether a page has waited long for Kapso within the last ``SLOW_PAUSE`` seconds."""
    return bool(try_cache(lambda: cache.get(SLOW_KEY)))
