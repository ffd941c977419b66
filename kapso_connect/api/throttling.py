"""Rate limits per user: for reading, for writing, and for requests that call Kapso's API."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

from rest_framework.exceptions import APIException
from rest_framework.request import Request, clone_request
from rest_framework.throttling import UserRateThrottle

from ..conf import get_conf
from ..log import log_event

LIMIT_HEADER = "RateLimit-Limit"
REMAINING_HEADER = "RateLimit-Remaining"
RESET_HEADER = "RateLimit-Reset"


class ApiThrottle(UserRateThrottle):
    """Limits the requests of one ``kind``, a key of ``API_THROTTLE_RATES``, per user or else per IP
    address. The site's DEFAULT_THROTTLE_RATES do not apply. If the cache is broken, there is no
    limit."""

    num_requests: int
    duration: int
    history: list[float]
    """The times of the requests that count, newest first; missing until the cache was read."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.scope = f"kapso_connect_{kind}"
        super().__init__()

    def get_rate(self) -> str | None:
        return get_conf().api_throttle_rates[self.kind]

    def allow_request(self, request: Request, view: Any) -> bool:
        try:
            return super().allow_request(request, view)
        except Exception as error:
            self._break(error)
            return True

    @property
    def is_read(self) -> bool:
        """Whether the cache was read."""
        return hasattr(self, "history")

    def wait(self) -> float:
        """Return after how many seconds one more request will be allowed than now."""
        # After a lower rate was set, there may be more requests than it allows: Django REST
        # framework's own method returns None then.
        history = self.history[: self.num_requests]
        return max(history[-1] + self.duration - self.timer(), 0) if history else 0

    def headers(self, request: Request, view: Any) -> dict[str, str]:
        """Return the RateLimit headers of the response to ``request``, counted or not. There are
        none if there is no limit, or if the cache is broken."""
        if self.rate is None:
            return {}
        if not self.is_read:  # the request was refused before it was counted
            try:
                self._read(request, view)
            except Exception as error:
                self._break(error)
                return {}
        return {
            LIMIT_HEADER: str(self.num_requests),
            REMAINING_HEADER: str(max(self.num_requests - len(self.history), 0)),
            RESET_HEADER: str(math.ceil(self.wait())),
        }

    def _read(self, request: Request, view: Any) -> None:
        reader = clone_request(request, "GET")  # which needs no CSRF token, and reads no body
        with suppress(APIException):  # without valid credentials, it is nobody's from now on
            _user = reader.user
        times = self.cache.get(self.get_cache_key(reader, view), [])
        self.history = [time for time in times if time > self.timer() - self.duration]

    def _break(self, error: Exception) -> None:
        self.rate = None  # no limit, and no headers
        log_event("rest.rate_limit_failed", error=type(error).__name__, exc_info=True)
