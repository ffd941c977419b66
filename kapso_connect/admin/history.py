"""Entries in the admin's history (LogEntry): which member of staff did what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.contrib.admin.models import CHANGE, LogEntry
from django.http import HttpRequest

from ..models import Customer, Invitation, InvitationBatch
from .customer_data import CUSTOMERS_PER_QUERY

MAX_LOGGED_CUSTOMERS = 5000
"""The most customers of a batch that get an entry each in the admin's history."""


def log_change(request: HttpRequest, customer: Customer, message: object) -> None:
    """Add ``message`` to the history of ``customer`` and of the object that owns it, if any."""
    owner = customer.get_owner()
    log_changes(request, [customer, owner] if owner else [customer], message)


def log_changes(request: HttpRequest, objects: Sequence[Any], message: object) -> None:
    """Add ``message`` to the history of each of the ``objects``."""
    staff: Any = request.user
    LogEntry.objects.log_actions(staff.pk, objects, CHANGE, str(message))


def log_batch(
    model_admin: Any, request: HttpRequest, batch: InvitationBatch, message: object
) -> None:
    """Add ``message`` to the history of each customer of ``batch`` who is not left out, and of the
    object that owns it; if there are too many, only to that of the batch. The timelines have it in
    either case."""
    rows = batch.invitations.exclude(status=Invitation.Status.DONE, email_status="")
    pks = list(rows.values_list("customer_id", flat=True)[: MAX_LOGGED_CUSTOMERS + 1])
    if len(pks) > MAX_LOGGED_CUSTOMERS:
        log_changes(request, [batch], message)
        return
    for start in range(0, len(pks), CUSTOMERS_PER_QUERY):
        customers = list(Customer.objects.filter(pk__in=pks[start : start + CUSTOMERS_PER_QUERY]))
        objs = model_admin.find_objects(request, customers).values()
        owners = [obj for obj in objs if not isinstance(obj, Customer)]
        log_changes(request, [*customers, *owners], message)
