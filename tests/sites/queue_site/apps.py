from __future__ import annotations

from django.apps import AppConfig


class QueueSiteConfig(AppConfig):
    name = "tests.sites.queue_site"

    def ready(self) -> None:
        from . import receivers  # noqa: F401
