"""A check for django-health-check.

It uses only this site's database, and changes nothing there, so it can run every few seconds.
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
from ..db import check_writable
from .queues import read_queues

REQUIRED_SETTINGS = ("api_key", "webhook_secret", "public_url")


@dataclasses.dataclass
class KapsoConnect(HealthCheck):  # type: ignore[misc]
    """Fails if webhooks or signals have been due for longer than ``max_lag``, if more than
    ``max_failed`` of them have failed permanently, if a required setting is missing, or if the
    database does not answer or accepts no writes.
    """

    max_lag: timedelta = timedelta(minutes=10)
    max_failed: int = 0

    async def run(self) -> None:
        # In the request's thread, so that it uses the request's database connection.
        problems = await sync_to_async(self.problems)()
        if problems:
            raise ServiceUnavailable(" ".join(problems))

    def problems(self) -> list[str]:
        """Return what is wrong, as sentences that contain no secrets."""
        try:
            conf: Any = get_conf()
        except ImproperlyConfigured:
            return ["KAPSO_CONNECT is invalid: run manage.py check."]
        found = [
            f"KAPSO_CONNECT['{name.upper()}'] is not set."
            for name in REQUIRED_SETTINGS
            if not getattr(conf, name)
        ]
        try:
            queues = read_queues()
        except Error:
            return [*found, "The database does not answer."]
        try:
            check_writable()
        except Error:
            found.append("The database accepts no writes, so webhooks are refused.")
        found += [
            f"The oldest of the {queue.name} has been due for {queue.lag:.0f} seconds."
            for queue in queues
            if queue.lag > self.max_lag.total_seconds()
        ]
        failed = sum(queue.failed for queue in queues)
        if failed > self.max_failed:
            found.append(f"{failed} webhooks or signals have failed permanently: see the admin.")
        return found
