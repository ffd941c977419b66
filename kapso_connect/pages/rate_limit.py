"""How often a customer may press the connect button: every time may ask Kapso."""

from __future__ import annotations

import time

from django.core.cache import cache

from ..log import log_event
from ..models import Customer

CONNECT_RATE_LIMIT = 10
"""How many times a customer may press the connect button within ``CONNECT_RATE_PERIOD``."""
CONNECT_RATE_PERIOD = 10 * 60
"""Seconds."""


def seconds_until_allowed(customer: Customer) -> int:
    """Count a request of ``customer``; return after how many seconds the next one is allowed, or 0.

    If the cache is broken or stores nothing, there is no limit.
    """
    period, elapsed = divmod(int(time.time()), CONNECT_RATE_PERIOD)
    key = f"kapso_connect.connect_rate.{customer.pk}.{period}"
    try:
        cache.add(key, 0, CONNECT_RATE_PERIOD)
        count = cache.incr(key)
    except ValueError:
        return 0
    except Exception as error:
        log_event("page.rate_limit_failed", error=type(error).__name__, exc_info=True)
        return 0
    return CONNECT_RATE_PERIOD - elapsed if count > CONNECT_RATE_LIMIT else 0
