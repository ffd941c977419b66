"""How often a customer's page may be used for what may ask Kapso: counted in the site's cache."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from django.core.cache import cache

from ..log import log_event
from ..models import Customer, SetupLink

ResultT = TypeVar("ResultT")

CONNECT_RATE_LIMIT = 10
"""How many times a customer may press the connect button within ``RATE_PERIOD``."""

QUESTION_RATE_LIMIT = 60
"""How many questions about one setup link the success page may ask Kapso within ``RATE_PERIOD``: a
customer's waiting page asks about 40. Browsers with the visit cookie have a limit of their own."""

RATE_PERIOD = 10 * 60
"""Seconds."""


def seconds_until_allowed(customer: Customer) -> int:
    """Count a press of the connect button; return after how many seconds the next one is allowed,
    or 0. If the cache is broken or stores nothing, there is no limit."""
    return _seconds_until_allowed(f"connect.{customer.pk}", CONNECT_RATE_LIMIT)


def is_question_allowed(link: SetupLink, *, by_visitor: bool) -> bool:
    """Count a question about ``link``; return whether it is within the limit. If the cache is
    broken or stores nothing, there is no limit."""
    who = "visitor" if by_visitor else "anybody"
    return not _seconds_until_allowed(f"question.{who}.{link.pk}", QUESTION_RATE_LIMIT)


def try_cache(use: Callable[[], ResultT]) -> ResultT | None:
    """Return what ``use`` returns; None if the cache is broken."""
    try:
        return use()
    except Exception as error:
        log_event("page.rate_limit_failed", error=type(error).__name__, exc_info=True)
        return None


def _seconds_until_allowed(name: str, limit: int) -> int:
    period, elapsed = divmod(int(time.time()), RATE_PERIOD)
    count = try_cache(lambda: _count(f"kapso_connect.rate.{name}.{period}"))
    return RATE_PERIOD - elapsed if count is not None and count > limit else 0


def _count(key: str) -> int:
    cache.add(key, 0, RATE_PERIOD)
    try:
        return cache.incr(key)
    except ValueError:  # the cache stores nothing
        return 0
