"""What this site does when a customer's WhatsApp changes.

A signal is sent once, and again to a receiver that raised or whose process died. ``event.pk`` is
the same then, so each receiver remembers the events it has dealt with, in one transaction with
what it did.
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
    """A new company can be invited at once: it is among the customers in the admin."""
    if created and not raw:
        _customer = instance.customer


@receiver([whatsapp_connected, whatsapp_reconnected, whatsapp_disconnected])
def note_connection(customer: Customer, event: TimelineEvent, **kwargs: object) -> None:
    """Bring the company in line with its connections as they are now.

    Looking at the present state makes the order of the signals, and a late one, harmless.
    """
    company = customer.owner
    if not isinstance(company, Company):
        return
    logger.info("%s: company=%s event=%s", event.kind, company, event.pk)
    with once(event, "note_connection") as first:
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
    """Welcome the company. Where the mail fails, nothing is remembered, and it is tried again."""
    company = customer.owner
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
def note_problem(
    customer: Customer, error_code: str, event: TimelineEvent, **kwargs: object
) -> None:
    """Show staff which company is stuck, and why."""
    company = customer.owner
    if not isinstance(company, Company):
        return
    logger.info("setup_failed: company=%s code=%s event=%s", company, error_code, event.pk)
    with once(event, "note_problem") as first:
        if first:
            company.whatsapp_problem = error_code
            company.save()


@contextmanager
def once(event: TimelineEvent, name: str) -> Iterator[bool]:
    """Open a transaction; give True the first time the receiver ``name`` sees this event."""
    with transaction.atomic():
        _row, first = HandledEvent.objects.get_or_create(event_id=event.pk, receiver=name)
        yield first
