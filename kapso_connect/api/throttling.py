"""How often one user may ask: to read, to write here, and for what makes this site ask Kapso."""

from __future__ import annotations

from rest_framework.throttling import UserRateThrottle

from ..conf import get_conf


class Throttle(UserRateThrottle):
    """Counts by user, or else by address, the requests of one ``kind``: a key of
    ``API_THROTTLE_RATES``. The site's own DEFAULT_THROTTLE_RATES play no part."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.scope = f"kapso_connect_{kind}"
        super().__init__()

    def get_rate(self) -> str | None:
        return get_conf().api_throttle_rates[self.kind]
