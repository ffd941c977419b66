"""A check for django-health-check: does what arrives get through?

It asks this site's database alone, so it may be asked for every few seconds.
"""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.db import Error
from health_check.base import HealthCheck
from health_check.exceptions import ServiceUnavailable

from ..conf import get_conf
from . import queues

REQUIRED = ("api_key", "webhook_secret", "public_url")


@dataclasses.dataclass
class KapsoConnect(HealthCheck):  # type: ignore[misc]
    """Fails while work is due for longer than ``max_lag``, while more than ``max_failed`` webhooks
    and signals have failed for good, and while a setting is missing without which nothing works.
    """

    max_lag: timedelta = timedelta(minutes=10)
    max_failed: int = 0

    async def run(self) -> None:
        # In the thread of the request, whose database connection it is.
        problems = await sync_to_async(self.problems)()
        if problems:
            raise ServiceUnavailable(" ".join(problems))

    def problems(self) -> list[str]:
        """Return what is wrong, in sentences that hold no secret."""
        try:
            conf: Any = get_conf()
        except ImproperlyConfigured:
            return ["KAPSO_CONNECT is not usable: see manage.py check."]
        found = [
            f"KAPSO_CONNECT['{name.upper()}'] is not set."
            for name in REQUIRED
            if not getattr(conf, name)
        ]
        try:
            found_queues = queues.read()
        except Error:
            return [*found, "The database does not answer."]
        found += [
            f"The oldest of the {queue.name} has been due for {queue.lag:.0f} seconds."
            for queue in found_queues
            if queue.lag > self.max_lag.total_seconds()
        ]
        failed = sum(queue.failed for queue in found_queues)
        if failed > self.max_failed:
            found.append(f"{failed} webhooks or signals failed for good: see the admin.")
        return found
