"""What each of Kapso's events means for a connection."""

from __future__ import annotations

from collections.abc import Callable

from ..exceptions import Ignored, NeedsConfirmation, Unusable
from ..models import Connection, Source, WebhookEvent
from ..onboarding import accounts, customers, numbers
from .payloads import PhoneNumberEvent, account_event, phone_number_event

Handler = Callable[[WebhookEvent, numbers.KnownCustomer | None], None]


def unknown(inbox: WebhookEvent, known_customer: numbers.KnownCustomer | None) -> None:
    raise Ignored("Not an event this app acts on.")


CREATED = "whatsapp.phone_number.created"

HANDLERS: dict[str, Handler] = {}
"""By the name of the event. These are the events that Kapso's webhook is subscribed to."""


def handles(name: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        HANDLERS[name] = handler
        return handler

    return register


@handles(CREATED)
def created(inbox: WebhookEvent, known_customer: numbers.KnownCustomer | None) -> None:
    event = phone_number_event(inbox.payload)
    if not event.customer_id:
        raise Ignored("The number belongs to the Kapso project itself, not to a customer.")
    numbers.connect(
        known_customer
        or customers.find_or_add_customer(event.customer_id, event.external_customer_id),
        numbers.Number(
            phone_number_id=event.phone_number_id,
            business_account_id=event.business_account_id,
            connection_type=event.connection_type,
        ),
        source=Source.WEBHOOK,
        webhook_event=inbox,
    )


@handles("whatsapp.phone_number.deleted")
@handles("whatsapp.phone_number.offboarded")
@handles("whatsapp.phone_number.disconnected")
def closed(inbox: WebhookEvent, known_customer: numbers.KnownCustomer | None) -> None:
    event = phone_number_event(inbox.payload)
    customer = None
    if event.customer_id:
        customer = customers.find_or_add_customer(event.customer_id, event.external_customer_id)
    connection = numbers.disconnect(
        event.phone_number_id,
        customer=customer,
        source=Source.WEBHOOK,
        webhook_event=inbox,
        occurred_at=event.occurred_at,
        data=why_closed(inbox.event, event),
    )
    if connection is None:
        raise Ignored("The number belongs to the Kapso project itself, not to a customer.")


def why_closed(name: str, event: PhoneNumberEvent) -> dict[str, str]:
    told = {
        "reason": event.reason or name.rpartition(".")[2],
        "initiated_by": event.initiated_by,
        "event": name,
        "id": event.event_id,
    }
    return {field: value for field, value in told.items() if value}


@handles("whatsapp.phone_number.reconnected")
def reconnected(inbox: WebhookEvent, known_customer: numbers.KnownCustomer | None) -> None:
    event = phone_number_event(inbox.payload)
    if not event.customer_id:
        raise Ignored("The number belongs to the Kapso project itself, not to a customer.")
    connection = Connection.objects.filter(phone_number_id=event.phone_number_id).first()
    if connection is None or not connection.is_connected:
        raise NeedsConfirmation


@handles("whatsapp.account.disabled")
@handles("whatsapp.account.restricted")
@handles("whatsapp.account.reinstated")
@handles("whatsapp.account.violation")
def account_updated(inbox: WebhookEvent, known_customer: numbers.KnownCustomer | None) -> None:
    event = account_event(inbox.payload)
    concerned, news = accounts.update_account(
        inbox.event.rpartition(".")[2],
        business_account_id=event.business_account_id,
        phone_number_ids=event.phone_number_ids,
        source=Source.WEBHOOK,
        event_id=event.event_id,
        occurred_at=event.occurred_at,
        restrictions=event.restrictions,
        data=event.details,
        webhook_event=inbox,
    )
    if not concerned:
        raise Unusable(
            f"No connected number here belongs to the account {event.business_account_id}."
        )
    if not news:
        raise Ignored("Out of date: this or a newer word about the account is known.")


# The inbox


OPENING = {CREATED, "whatsapp.phone_number.reconnected"}
