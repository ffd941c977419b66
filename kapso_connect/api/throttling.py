"""Rate limits per user: for reading, for writing, and for requests that call Kapso's API."""

from __future__ import annotations

from rest_framework.throttling import UserRateThrottle

from ..conf import get_conf


class ApiThrottle(UserRateThrottle):
    """Limits the requests of one ``kind``, a key of ``API_THROTTLE_RATES``, per user or else per IP
    address. The site's DEFAULT_THROTTLE_RATES do not apply."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.scope = f"kapso_connect_{kind}"
        super().__init__()

    def get_rate(self) -> str | None:
        return get_conf().api_throttle_rates[self.kind]
