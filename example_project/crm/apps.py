from __future__ import annotations

from django.apps import AppConfig


class CrmConfig(AppConfig):
    name = "example_project.crm"
    verbose_name = "CRM"

    def ready(self) -> None:
        from . import receivers  # noqa: F401  (connects them)
