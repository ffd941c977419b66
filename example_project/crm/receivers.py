"""What this site does when a customer's WhatsApp changes.

A signal is sent once, and again to a receiver that raised or whose process died. ``event.pk`` is
the same then, so each receiver records the events that it has handled, in one transaction with its
changes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from django.core.mail import send_mail
from django.db import transaction
from django.db.models.signals import post_save
from django.dispatch import receiver

from kapso_connect.models import Connection, Customer, TimelineEvent
from kapso_connect.signals import (
    whatsapp_connected,
    whatsapp_disconnected,
    whatsapp_reconnected,
    whatsapp_setup_failed,
)

from .models import Company, HandledEvent

logger = logging.getLogger(__name__)


@receiver(post_save, sender=Company)
def make_customer(instance: Company, created: bool, raw: bool, **kwargs: object) -> None:
    """List a new company among the customers in the admin, so that it can be invited."""
    if created and not raw:
        _customer = instance.customer


@receiver([whatsapp_connected, whatsapp_reconnected, whatsapp_disconnected])
def update_company(customer: Customer, event: TimelineEvent, **kwargs: object) -> None:
    """Update the company from its connections.

    It reads the current state, so the order of the signals does not matter.
    """
    company = customer.get_owner()
    if not isinstance(company, Company):
        return
    logger.info("%s: company=%s event=%s", event.kind, company, event.pk)
    with once(event, "update_company") as first:
        if not first:
            return
        connection = (
            customer.connections.filter(status=Connection.Status.CONNECTED)
            .order_by("-connected_at")
            .first()
        )
        company.whatsapp_phone_number_id = connection.phone_number_id if connection else ""
        company.whatsapp_connected_at = connection.connected_at if connection else None
        company.whatsapp_problem = ""
        company.save()


@receiver(whatsapp_connected)
def send_welcome(customer: Customer, event: TimelineEvent, **kwargs: object) -> None:
    """Send a welcome e-mail. If that fails, the event is not recorded, and it is tried again."""
    company = customer.get_owner()
    if not isinstance(company, Company):
        return
    with once(event, "send_welcome") as first:
        if first:
            send_mail(
                f"Welcome to WhatsApp, {company.name}",
                "Your WhatsApp number is connected. You can write to your customers now.",
                None,
                [company.email],
            )


@receiver(whatsapp_setup_failed)
def record_problem(
    customer: Customer, error_code: str, event: TimelineEvent, **kwargs: object
) -> None:
    """Show staff which company is stuck, and why."""
    company = customer.get_owner()
    if not isinstance(company, Company):
        return
    logger.info("setup_failed: company=%s code=%s event=%s", company, error_code, event.pk)
    with once(event, "record_problem") as first:
        if first:
            company.whatsapp_problem = error_code
            company.save()


@contextmanager
def once(event: TimelineEvent, name: str) -> Iterator[bool]:
    """Open a transaction; yield True the first time that the receiver ``name`` gets this event."""
    with transaction.atomic():
        _row, first = HandledEvent.objects.get_or_create(event_id=event.pk, receiver=name)
        yield first
