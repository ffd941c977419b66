"""The admin of this package, and the mixin for a site's own ModelAdmins."""

from __future__ import annotations

from .connections import ConnectionAdmin
from .customers import CustomerAdmin
from .invitation_batches import InvitationBatchAdmin
from .mixin import SetupLinkAdminMixin
from .setup_links import SetupLinkAdmin
from .timeline_events import TimelineEventAdmin
from .webhook_events import WebhookEventAdmin

__all__ = [
    "ConnectionAdmin",
    "CustomerAdmin",
    "InvitationBatchAdmin",
    "SetupLinkAdmin",
    "SetupLinkAdminMixin",
    "TimelineEventAdmin",
    "WebhookEventAdmin",
]
