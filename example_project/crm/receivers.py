"""What this site does when a customer's WhatsApp changes.

A signal is sent once, and again to a receiver that raised or whose process died. ``event.pk`` is
the same then, so each receiver records the events that it has handled, in one transaction with its
changes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from django.core.mail import send_mail
from django.db import transaction
from django.db.models.signals import post_save
from django.dispatch import receiver

from kapso_connect.exceptions import KapsoError
from kapso_connect.kapso import KapsoClient
from kapso_connect.models import Connection, Customer, TimelineEvent
from kapso_connect.signals import (
    whatsapp_connected,
    whatsapp_disconnected,
    whatsapp_reconnected,
    whatsapp_setup_failed,
)

from .models import Company, HandledEvent, WelcomeMessage

logger = logging.getLogger(__name__)

TEMPLATE = "number_connected"
"""A template that Meta has approved. A text of one's own is refused until the person has written to
the number, and from 24 hours afterwards. The sandbox takes any template."""

SEND_BUDGET = 3.0
"""Seconds for sending: without a queue, Kapso waits meanwhile for the answer to its webhook."""


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


@receiver(whatsapp_connected)
def send_first_message(
    connection: Connection, customer: Customer, event: TimelineEvent, **kwargs: object
) -> None:
    """Send a WhatsApp message from the number that was just connected to the person in charge.

    Like every call to Kapso, it is made outside a transaction. So the row comes first: it says that
    the message may have been sent, and a second call sends no second one. If Kapso refuses it or is
    away, nothing was sent, and the signal is sent again later.
    """
    company = customer.get_owner()
    if not isinstance(company, Company):
        return
    to = re.sub("[^0-9]", "", company.phone)
    if not to:  # "please write to us": Kapso would refuse it each time
        return
    body = f"Hello! {company.name} is on WhatsApp now, with this number."
    message, is_new = WelcomeMessage.objects.get_or_create(
        event_id=event.pk,
        defaults={
            "company": company,
            "phone_number_id": connection.phone_number_id,
            "to": to,
            "body": body,
        },
    )
    if not is_new:
        # The process that was sending it has died.
        WelcomeMessage.objects.filter(pk=message.pk, state=WelcomeMessage.State.SENDING).update(
            state=WelcomeMessage.State.UNKNOWN
        )
        return
    name = {"type": "text", "text": company.name}
    template = {
        "name": TEMPLATE,
        "language": {"code": "en_US"},
        "components": [{"type": "body", "parameters": [name]}],
    }
    try:
        with KapsoClient.from_settings(budget=SEND_BUDGET) as client:
            sent = client.send_message(
                connection.phone_number_id,
                to=to,
                message={"type": "template", "template": template},
                callback_data=f"welcome-{event.pk}",
            )
    except KapsoError as error:
        if not error.outcome_unknown:
            message.delete()
            raise
        logger.warning("The first message to %s may have been sent: %s", company, error)
        message.state = WelcomeMessage.State.UNKNOWN
    else:
        message.state = WelcomeMessage.State.SENT
        message.message_id = sent.id
    message.save()


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
