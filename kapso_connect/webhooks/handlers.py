"""What each of Kapso's webhook events changes here."""

from __future__ import annotations

from ..exceptions import Ignored, NeedsConfirmation, UnprocessableEvent
from ..models import Connection, Source, WebhookEvent
from ..onboarding import accounts, customers, disconnections, numbers
from .payloads import AccountEvent, PhoneNumberEvent

NUMBER_CREATED = "whatsapp.phone_number.created"
NUMBER_RECONNECTED = "whatsapp.phone_number.reconnected"

CONNECTING_EVENTS = {NUMBER_CREATED, NUMBER_RECONNECTED}
"""After these events a number is connected; after the other events of a number it is not."""

OWN_NUMBER = "The number belongs to the Kapso project itself, not to a customer."


def apply(event: PhoneNumberEvent | AccountEvent, webhook_event: WebhookEvent) -> None:
    """Apply ``event``, which ``webhook_event`` stores. Call it inside ``retry_on_conflict``.

    Raise Ignored, UnprocessableEvent or NeedsConfirmation where nothing follows from it.
    """
    if isinstance(event, AccountEvent):
        handle_account_updated(event, webhook_event)
    elif webhook_event.event == NUMBER_CREATED:
        handle_created(event, webhook_event)
    elif webhook_event.event == NUMBER_RECONNECTED:
        handle_reconnected(event)
    else:
        handle_disconnected(event, webhook_event)


def handle_created(event: PhoneNumberEvent, webhook_event: WebhookEvent) -> None:
    """Connect the number.

    Raise Ignored for a number of the Kapso project itself, and NeedsConfirmation if the number was
    disconnected or is another customer's.
    """
    if not event.customer_id:
        raise Ignored(OWN_NUMBER)
    numbers.connect(
        customers.find_or_add_customer(event.customer_id, event.external_customer_id),
        numbers.Number(
            phone_number_id=event.phone_number_id,
            business_account_id=event.business_account_id,
            connection_type=event.connection_type,
        ),
        source=Source.WEBHOOK,
        webhook_event=webhook_event,
        is_locked=True,
    )


def handle_disconnected(event: PhoneNumberEvent, webhook_event: WebhookEvent) -> None:
    """Disconnect the number.

    Raise Ignored for an unknown number of the Kapso project itself, and NeedsConfirmation if the
    event may be about an earlier connection of the number.
    """
    customer = None
    if event.customer_id:
        customer = customers.find_or_add_customer(event.customer_id, event.external_customer_id)
    connection = disconnections.disconnect(
        event.phone_number_id,
        customer=customer,
        source=Source.WEBHOOK,
        webhook_event=webhook_event,
        occurred_at=event.occurred_at,
        data=disconnection_data(webhook_event.event, event),
    )
    if connection is None:
        raise Ignored(OWN_NUMBER)


def disconnection_data(event_name: str, event: PhoneNumberEvent) -> dict[str, str]:
    """Return what the timeline keeps about why and by whom a number was disconnected."""
    data = {
        "reason": event.reason or event_name.rpartition(".")[2],
        "initiated_by": event.initiated_by,
        "event": event_name,
        "id": event.event_id,
    }
    return {name: value for name, value in data.items() if value}


def handle_reconnected(event: PhoneNumberEvent) -> None:
    """Change nothing for a number that is connected here.

    Raise NeedsConfirmation for any other, and Ignored for a number of the Kapso project itself.
    """
    if not event.customer_id:
        raise Ignored(OWN_NUMBER)
    connection = Connection.objects.filter(phone_number_id=event.phone_number_id).first()
    if connection is None or not connection.is_connected:
        raise NeedsConfirmation


def handle_account_updated(event: AccountEvent, webhook_event: WebhookEvent) -> None:
    """Record Meta's decision about an account.

    Raise UnprocessableEvent if no connected number belongs to the account, and Ignored if this or a
    newer decision is already recorded. It never raises NeedsConfirmation.
    """
    affected, changed = accounts.update_account(
        webhook_event.event.rpartition(".")[2],
        business_account_id=event.business_account_id,
        phone_number_ids=event.phone_number_ids,
        source=Source.WEBHOOK,
        event_id=event.event_id,
        occurred_at=event.occurred_at,
        restrictions=event.restrictions,
        data=event.details,
        webhook_event=webhook_event,
    )
    if not affected:
        raise UnprocessableEvent(
            f"No connected number here belongs to the account {event.business_account_id}."
        )
    if not changed:
        raise Ignored("Out of date: this or a newer change of the account is already recorded.")
