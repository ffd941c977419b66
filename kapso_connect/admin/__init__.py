"""The admin: who is invited, what is connected, what happened, and what has to be looked at."""

from __future__ import annotations

from .connections import ConnectionAdmin, SetupLinkAdmin
from .customers import CustomerAdmin
from .events import TimelineEventAdmin, WebhookEventAdmin
from .mixin import SetupLinkAdminMixin

__all__ = [
    "ConnectionAdmin",
    "CustomerAdmin",
    "SetupLinkAdmin",
    "SetupLinkAdminMixin",
    "TimelineEventAdmin",
    "WebhookEventAdmin",
]
