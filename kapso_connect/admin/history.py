"""Entries in the admin's history (LogEntry): which member of staff did what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.contrib.admin.models import CHANGE, LogEntry
from django.http import HttpRequest

from ..models import Customer


def log_change(request: HttpRequest, customer: Customer, message: object) -> None:
    """Add ``message`` to the history of ``customer`` and of the object that owns it, if any."""
    owner = customer.get_owner()
    log_changes(request, [customer, owner] if owner else [customer], message)


def log_changes(request: HttpRequest, objects: Sequence[Any], message: object) -> None:
    """Add ``message`` to the history of each of the ``objects``."""
    staff: Any = request.user
    LogEntry.objects.log_actions(staff.pk, objects, CHANGE, str(message))
