"""Kapso's rate limits: all requests of one key, and the health checks of the project."""

from __future__ import annotations

from datetime import timedelta

from .fields import ApiError
from .state import now, store

MINUTE = timedelta(minutes=1)
HEALTH_LIMITS = (("Second", 5, timedelta(seconds=1)), ("Minute", 60, MINUTE))


def count_request(key: str) -> dict[str, str]:
    """Count a request of ``key``; return the headers of its answer. Raise ApiError over the limit.

    The limit is ``store.rate_limit`` in a minute; 0 stands for none.
    """
    limit, at = store.rate_limit, now()
    if not limit:
        return {}
    started_at, count = store.requests_by_key.get(key, (at, 0))
    if at - started_at >= MINUTE:
        started_at, count = at, 0
    headers = {"X-RateLimit-Limit": str(limit), "X-RateLimit-Remaining": str(limit - count - 1)}
    if count >= limit:
        headers |= {"X-RateLimit-Remaining": "0", "Retry-After": "60"}
        raise ApiError(429, "Rate limit exceeded", headers)
    store.requests_by_key[key] = started_at, count + 1
    return headers


def count_health_check() -> dict[str, str]:
    """Count a health check; return the headers of its answer. Raise ApiError over a limit."""
    at = now()
    calls = [call for call in store.health_calls if call + MINUTE > at]
    used = {
        name: [call for call in calls if call + window > at] for name, _, window in HEALTH_LIMITS
    }
    waits = [
        (used[name][0] + window - at, f"{limit} health checks a {name.lower()}")
        for name, limit, window in HEALTH_LIMITS
        if len(used[name]) >= limit
    ]
    headers: dict[str, str] = {}
    for name, limit, _ in HEALTH_LIMITS:
        remaining = limit - len(used[name]) - (0 if waits else 1)
        headers[f"X-Health-RateLimit-{name}-Limit"] = str(limit)
        headers[f"X-Health-RateLimit-{name}-Remaining"] = str(remaining)
    if waits:
        wait, reason = max(waits)
        headers["Retry-After"] = str(int(wait.total_seconds()) + 1)
        text = f"More than {reason} in this project"
        raise ApiError(429, "Rate limit exceeded", headers, message=text)
    store.health_calls = [*calls, at]
    return headers
