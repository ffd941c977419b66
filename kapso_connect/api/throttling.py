"""Rate limits per user: for reading, for writing, and for requests that call Kapso's API."""

from __future__ import annotations

from typing import Any

from rest_framework.request import Request
from rest_framework.throttling import UserRateThrottle

from ..conf import get_conf
from ..log import log_event


class ApiThrottle(UserRateThrottle):
    """Limits the requests of one ``kind``, a key of ``API_THROTTLE_RATES``, per user or else per IP
    address. The site's DEFAULT_THROTTLE_RATES do not apply. If the cache is broken, there is no
    limit."""

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
            log_event("rest.rate_limit_failed", error=type(error).__name__, exc_info=True)
            return True
