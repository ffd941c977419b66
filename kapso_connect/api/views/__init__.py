"""The views of the API. They change setup links and connections through ``onboarding`` only."""

from __future__ import annotations

from .base import API_VERSION, Api
from .batches import Batches, BatchInvitations
from .connections import Connections
from .customers import Customers
from .events import Events
from .not_found import NotFound
from .root import Root
from .schema import Schema
from .setup_links import SetupLinks

__all__ = [
    "API_VERSION",
    "Api",
    "BatchInvitations",
    "Batches",
    "Connections",
    "Customers",
    "Events",
    "NotFound",
    "Root",
    "Schema",
    "SetupLinks",
]
