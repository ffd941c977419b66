"""The bodies of requests and responses. ``help_text`` is the description in the schema."""

from __future__ import annotations

from .base import EmptySerializer, ErrorSerializer, RootSerializer
from .batches import (
    EMAIL_STATUSES,
    BatchRequestSerializer,
    BatchSerializer,
    InvitationSerializer,
)
from .connections import ConnectionSerializer
from .customers import (
    CustomerPatchSerializer,
    CustomerSerializer,
    SentEmailSerializer,
    StatusSerializer,
    status_body,
)
from .events import EventSerializer
from .setup_links import (
    SECRET_FIELDS,
    NewSetupLinkSerializer,
    SetupLinkRequestSerializer,
    SetupLinkSerializer,
)

__all__ = [
    "EMAIL_STATUSES",
    "SECRET_FIELDS",
    "BatchRequestSerializer",
    "BatchSerializer",
    "ConnectionSerializer",
    "CustomerPatchSerializer",
    "CustomerSerializer",
    "EmptySerializer",
    "ErrorSerializer",
    "EventSerializer",
    "InvitationSerializer",
    "NewSetupLinkSerializer",
    "RootSerializer",
    "SentEmailSerializer",
    "SetupLinkRequestSerializer",
    "SetupLinkSerializer",
    "StatusSerializer",
    "status_body",
]
