"""What each of Kapso's webhook events changes here."""

from __future__ import annotations

from ..exceptions import Ignored, MalformedPayload, NeedsConfirmation, UnknownCustomer
from ..models import OFFBOARDED, Connection, Source, WebhookEvent
from ..onboarding import accounts, customers, details, disconnections, numbers
from ..utils import as_aware, as_instant
from .payloads import SAMPLE_NUMBER, AccountEvent, PhoneNumberEvent

NUMBER_CREATED = "whatsapp.phone_number.created"
NUMBER_RECONNECTED = "whatsapp.phone_number.reconnected"
NUMBER_OFFBOARDED = "whatsapp.phone_number.offboarded"

ACCOUNT_OFFBOARDED = "ACCOUNT_OFFBOARDED"
"""Meta's name, in the ``source`` of an event, for what Kapso calls ``offboarded``."""

CONNECTING_EVENTS = {NUMBER_CREATED, NUMBER_RECONNECTED}
"""After these events a number is connected; after the other events of a number it is not."""

TEST_DELIVERY = "A test delivery; it changes nothing."
OWN_NUMBER = "The number belongs to the Kapso project itself, not to a customer."


def apply(event: PhoneNumberEvent | AccountEvent, webhook_event: WebhookEvent) -> None:
    """Apply ``event``, which ``webhook_event`` stores. Call it inside ``retry_on_conflict``.

    Raise Ignored, NeedsConfirmation or MalformedPayload where nothing follows from it.
    """
    if isinstance(event, AccountEvent):
        handle_account_updated(event, webhook_event)
        return
    if event.phone_number_id == SAMPLE_NUMBER and not is_sample_known(event):
        raise Ignored(TEST_DELIVERY)
    if is_foreign(event):
        refuse_foreign(event)
    if webhook_event.event == NUMBER_CREATED:
        handle_created(event, webhook_event)
    elif webhook_event.event == NUMBER_RECONNECTED:
        handle_reconnected(event, webhook_event)
    else:
        handle_disconnected(event, webhook_event)


def is_sample_known(event: PhoneNumberEvent) -> bool:
    """Return whether an event about Kapso's sample number is about a customer of this site: a
    developer has put a real customer into the documentation's sample."""
    if not event.customer_id:
        return Connection.objects.filter(phone_number_id=event.phone_number_id).exists()
    return customers.is_known(event.customer_id, event.external_customer_id)


def is_foreign(event: PhoneNumberEvent) -> bool:
    """Return whether an event is about a customer of another site in the same Kapso project, as far
    as ADOPT_UNKNOWN_CUSTOMERS tells."""
    if not event.customer_id:
        return False
    return customers.is_foreign(event.customer_id, event.external_customer_id)


def is_theirs(event: PhoneNumberEvent, connection: Connection) -> bool:
    """Return whether ``connection`` is of the customer whom ``event`` names, if any."""
    if not event.customer_id:
        return True
    customer = connection.customer
    external_id = event.external_customer_id
    return customer.kapso_id == event.customer_id or (
        bool(external_id) and customer.external_customer_id == external_id
    )


def refuse_foreign(event: PhoneNumberEvent) -> None:
    """Raise UnknownCustomer, or NeedsConfirmation if the number is connected here: it may have
    moved to that customer."""
    if Connection.objects.connected().filter(phone_number_id=event.phone_number_id).exists():
        raise NeedsConfirmation
    raise UnknownCustomer(event.customer_id)


def handle_created(event: PhoneNumberEvent, webhook_event: WebhookEvent) -> None:
    """Connect the number.

    Raise Ignored for a number of the Kapso project itself, and NeedsConfirmation if the number was
    disconnected or is another customer's.
    """
    if not event.customer_id:
        raise Ignored(OWN_NUMBER)
    connection = numbers.connect(
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
    details.request_after_commit(connection)


def handle_disconnected(event: PhoneNumberEvent, webhook_event: WebhookEvent) -> None:
    """Disconnect the number.

    Raise Ignored for an unknown number of the Kapso project itself, and NeedsConfirmation if the
    event may be about an earlier connection of the number, or may be another event: ``created`` and
    ``deleted`` have the same body, and their name is in a header, which is not signed.
    """
    customer = None
    if event.customer_id:
        customer = customers.find_or_add_customer(event.customer_id, event.external_customer_id)
    connection = disconnections.disconnect(
        event.phone_number_id,
        customer=customer,
        source=Source.WEBHOOK,
        webhook_event=webhook_event,
        occurred_at=event.occurred_at if webhook_event.is_name_signed else None,
        data=disconnection_data(event, webhook_event),
    )
    if connection is None:
        raise Ignored(OWN_NUMBER)


def disconnection_data(event: PhoneNumberEvent, webhook_event: WebhookEvent) -> dict[str, str]:
    """Return what the timeline keeps about why and by whom a number was disconnected.

    The reason is ``OFFBOARDED`` only if the signed body says that it was Meta, whose pauses are
    usually over within minutes.
    """
    event_name = webhook_event.event
    is_signed = webhook_event.is_name_signed or event.source_event == ACCOUNT_OFFBOARDED
    if event_name == NUMBER_OFFBOARDED:
        reason = OFFBOARDED if is_signed else "disconnected"
    else:
        source = event.source_event if event.source_event != ACCOUNT_OFFBOARDED else ""
        reason = event.reason or source.lower() or event_name.rpartition(".")[2]
    data = {
        "reason": reason,
        "initiated_by": event.initiated_by,
        "event": event_name,
        "id": event.event_id,
    }
    return {name: value for name, value in data.items() if value}


def handle_reconnected(event: PhoneNumberEvent, webhook_event: WebhookEvent) -> None:
    """For a number that is connected here, record only when it was reported as connected: what is
    reported later, but happened before, must not close it.

    Raise NeedsConfirmation for any other, and Ignored for an unknown number of the Kapso project
    itself.
    """
    connection = numbers.lock_number(event.phone_number_id)
    if connection is None and not event.customer_id:
        raise Ignored(OWN_NUMBER)
    if connection is None or not connection.is_connected:
        raise NeedsConfirmation
    known, reported = connection.reported_connected_at, event.occurred_at
    is_later = reported and (known is None or as_instant(known) < as_aware(reported))
    if webhook_event.is_name_signed and is_later:
        connection.reported_connected_at = reported
        connection.save(update_fields=["reported_connected_at", "updated_at"])


def handle_account_updated(event: AccountEvent, webhook_event: WebhookEvent) -> None:
    """Record Meta's decision about an account.

    Raise Ignored if no connected number belongs to the account, which may be that of another site;
    if this or a newer decision is already recorded; or if the decision is older than the
    connection. Raise MalformedPayload if only a header says which decision it is, which is not
    signed. It never raises NeedsConfirmation: the API says nothing about decisions.
    """
    decision = webhook_event.event.rpartition(".")[2]
    account_id, number_ids = event.business_account_id, event.phone_number_ids
    if not accounts.affected_numbers(account_id, number_ids).exists():
        is_sample = SAMPLE_NUMBER in number_ids
        no_number = f"No connected number here belongs to the account {account_id}."
        raise Ignored(TEST_DELIVERY if is_sample else no_number)
    if not webhook_event.is_name_signed and not is_borne_out(decision, event):
        raise MalformedPayload(
            f"The signed body does not say that the account was {decision}; only a header does, "
            "which is not signed."
        )
    _affected, changed = accounts.update_account(
        decision,
        business_account_id=account_id,
        phone_number_ids=number_ids,
        source=Source.WEBHOOK,
        event_id=event.event_id,
        occurred_at=event.occurred_at,
        restrictions=event.restrictions,
        data=event.details,
        webhook_event=webhook_event,
    )
    if not changed:
        raise Ignored(
            "Out of date: this or a newer change of the account is already recorded, or the number "
            "was connected since."
        )


def is_borne_out(decision: str, event: AccountEvent) -> bool:
    """Return whether the contents of ``event`` say that the account was ``decision``."""
    source = event.details.get("source", {}).get("event")
    state = event.details.get("ban", {}).get("state")
    borne_out = {
        "restricted": bool(event.restrictions) or source == "ACCOUNT_RESTRICTION",
        "violation": "violation" in event.details or source == "ACCOUNT_VIOLATION",
        "disabled": state == "DISABLE",
        "reinstated": state == "REINSTATE",
    }
    return bool(borne_out[decision])
