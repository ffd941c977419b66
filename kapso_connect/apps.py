from __future__ import annotations

from django.apps import AppConfig
from django.conf import settings

from .translation import gettext_lazy as _


class KapsoConnectConfig(AppConfig):
    name = "kapso_connect"
    verbose_name = _("WhatsApp connections")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from . import checks  # noqa: F401  (registers the system checks)
        from .onboarding import details  # noqa: F401  (what is done before a signal is sent)
        from .onboarding.automatic_emails import connect_receiver
        from .webhooks.number_webhooks import connect_receivers

        connect_receiver()
        connect_receivers()

        if settings.is_overridden("TASKS"):  # type: ignore[misc]
            # A backend that cannot run our tasks fails here, not with the first webhook.
            from .onboarding import invitations  # noqa: F401
            from .webhooks import inbox  # noqa: F401
