"""Django's admin log: which member of staff did what to which customer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from django.contrib.admin.models import CHANGE, LogEntry
from django.core.exceptions import ValidationError
from django.http import HttpRequest

from ..models import Customer


def log_change(request: HttpRequest, customer: Customer, message: object) -> None:
    """Note ``message`` on ``customer`` and, where there is one, on the host's own object."""
    objects: list[Any] = [customer]
    # Its model may be gone, and its id need not be one.
    with suppress(AttributeError, ValueError, ValidationError):
        objects += [customer.owner] if customer.owner else []
    log_changes(request, objects, message)


def log_changes(request: HttpRequest, objects: Sequence[Any], message: object) -> None:
    """Note ``message`` on each of the ``objects``."""
    staff: Any = request.user
    LogEntry.objects.log_actions(staff.pk, objects, CHANGE, str(message))
