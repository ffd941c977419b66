"""Customers whose personal data are erased.

What identifies people goes: names, addresses, phone numbers, URLs and the bodies of webhooks. The
rows, their times and states stay, which the statistics count, and so do Kapso's and Meta's ids:
without them, a late report about the customer would add the customer again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from django.apps import apps
from django.contrib.auth.models import AbstractBaseUser
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ImproperlyConfigured
from django.db.models import Model, Q, QuerySet
from django.utils import timezone

from .. import outbox
from ..db import refuse_in_transaction, retry_on_conflict
from ..exceptions import KapsoError, KapsoNotFound, NotErased, NumberMoved, TryLater
from ..kapso.client import KapsoClient
from ..log import log_event
from ..models import (
    Connection,
    Customer,
    IdempotentRequest,
    Invitation,
    InvitationBatch,
    SetupLink,
    TimelineEvent,
    WebhookEvent,
)
from ..translation import gettext as _
from ..translation import ngettext
from ..utils import utc_now
from .arguments import check_customer
from .messages import staff_message
from .remote_numbers import record_numbers
from .removal import disconnect_number
from .setup_links import revoke_setup_link
from .status import update_status

KEPT_DATA = frozenset({"reason", "error_code", "channel", "status", "message", "event", "id"})
"""What the data of a timeline event keep: words of this package, of Kapso's or Meta's, and the id
by which a decision of Meta's that is reported twice is recognized."""

PERSONAL_OPTIONS = frozenset({"reconnect_phone_number", "language"})
"""The options of a setup link that say something about the customer."""

REASONS_NOT_TO_ERASE = (
    KapsoError,
    NotErased,
    TryLater,
    ImproperlyConfigured,
    Customer.DoesNotExist,
)
"""What ``erase_customer`` raises about a customer that it did not anonymise."""

DELIVERY_WAIT_SECONDS = 5.0
"""How long to wait for signals that another process is sending."""

ROWS_PER_QUERY = 500


@dataclass(frozen=True)
class Erasure:
    """What ``erase_customer`` did: how many ``numbers`` it disconnected and how many ``links`` it
    revoked at Kapso. ``left_at_kapso`` says, for staff, why Kapso still has its own record of the
    customer; "" if it does not. Erase the customer again to try that again."""

    numbers: int
    links: int
    left_at_kapso: str = ""


def erase_customer(
    customer: Customer,
    *,
    actor: AbstractBaseUser | None = None,
    client: KapsoClient | None = None,
) -> Erasure:
    """Erase the personal data of ``customer``, on behalf of ``actor``. This cannot be undone.

    The customer's numbers are disconnected at Kapso and its links are revoked, then the signals
    about that are sent, Kapso's record of the customer is deleted if it has no number any more, and
    the rows here are anonymised in one transaction. What counts in statistics stays. An erased
    customer cannot be invited again, and has no owner: the next invitation of that object is one of
    a new customer. Erasing a customer again erases what came since.

    It is safe to call again after an error, and continues where it stopped. Raise NotErased if a
    signal about the customer could not be delivered, or something changed meanwhile; a KapsoError
    or TryLater as ``disconnect_number`` does; Customer.DoesNotExist; and CalledInTransaction
    inside a transaction. Nothing is anonymised then.
    """
    check_customer(customer, "erase_customer")
    refuse_in_transaction()
    customer.refresh_from_db()
    client = client or KapsoClient.from_settings()
    if customer.kapso_id:
        with suppress(KapsoNotFound):
            record_numbers(customer, client)
    revoked = SetupLink.objects.filter(customer=customer, status=SetupLink.Status.REVOKED)
    revoked_before = revoked.count()
    numbers = _disconnect_numbers(customer, actor, client)
    for link in SetupLink.objects.filter(customer=customer).select_related("customer"):
        if link.status == SetupLink.Status.ACTIVE or link.is_latest:
            revoke_setup_link(link, actor=actor, client=client)
    links = revoked.count() - revoked_before
    _deliver_signals(customer)
    erasure = Erasure(numbers, links, _delete_at_kapso(customer, client))
    retry_on_conflict(lambda: _anonymise(customer.pk))
    customer.refresh_from_db()
    log_event(
        "customer.erased",
        customer_id=customer.pk,
        numbers=numbers,
        links=links,
        actor_id=actor.pk if actor else None,
        is_left_at_kapso=bool(erasure.left_at_kapso),
    )
    return erasure


def _disconnect_numbers(
    customer: Customer, actor: AbstractBaseUser | None, client: KapsoClient
) -> int:
    """Disconnect the customer's numbers at Kapso; return how many there were."""
    count = 0
    connected = Connection.objects.connected().filter(customer=customer)
    for connection in connected.select_related("customer"):
        with suppress(NumberMoved):  # It is another customer's now, which is recorded.
            disconnect_number(connection, actor=actor, client=client)
            count += 1
    return count


def _undelivered(customer: Customer) -> QuerySet[TimelineEvent]:
    """Return the events of ``customer`` whose signals are still to be sent, with what is erased."""
    webhooks = webhooks_of(customer).values("pk")
    return TimelineEvent.objects.undelivered().filter(
        Q(customer=customer) | Q(webhook_event__in=webhooks), dismissed_at=None
    )


def _deliver_signals(customer: Customer) -> None:
    """Send the signals about ``customer`` that have not been delivered: receivers need its data.
    Raise NotErased if one cannot be delivered."""
    deadline = time.monotonic() + DELIVERY_WAIT_SECONDS
    tried: set[int] = set()
    while events := list(_undelivered(customer).order_by("pk")):
        for event in events:
            rows = TimelineEvent.objects.undelivered().filter(pk=event.pk)
            if event.pk not in tried and rows.retry_now():
                tried.add(event.pk)
                outbox.deliver(event.pk)
        in_progress = _undelivered(customer).filter(leased_until__gt=utc_now())
        if not in_progress.exists() or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    if left := _undelivered(customer).count():
        raise NotErased(
            ngettext(
                "%(count)s signal about this customer has not been delivered, and receivers need "
                "the data. Send it again in the timeline, or dismiss it there. Then erase the "
                "customer again.",
                "%(count)s signals about this customer have not been delivered, and receivers need "
                "the data. Send them again in the timeline, or dismiss them there. Then erase the "
                "customer again.",
                left,
            )
            % {"count": left}
        )


def _delete_at_kapso(customer: Customer, client: KapsoClient) -> str:
    """Delete Kapso's record of ``customer``, unless it has a number that is not disconnected here.
    Return why it is still there, for staff; "" if it is not."""
    if not customer.kapso_id:
        return ""
    ended = set(customer.connections.values_list("phone_number_id", flat=True))
    try:
        # A number that was just disconnected is shown for a moment.
        if any(
            number.customer_id == customer.kapso_id and number.phone_number_id not in ended
            for number in client.list_phone_numbers(customer_id=customer.kapso_id)
        ):
            return _("Kapso shows another number of this customer.")
        client.delete_customer(customer.kapso_id)
    except KapsoNotFound:
        return ""
    except KapsoError as error:
        return staff_message(error)
    return ""


def _anonymise(pk: int) -> None:
    """Erase the personal data in all rows of a customer. Call it in a transaction."""
    customer = Customer.objects.locked().get(pk=pk)
    connected = Connection.objects.connected().filter(customer=customer)
    active = SetupLink.objects.active().filter(customer=customer)
    if connected.exists() or active.exists() or _undelivered(customer).exists():
        raise NotErased(_("Something about this customer has just changed. Erase it again."))
    _anonymise_history(customer)
    _anonymise_webhooks(customer)
    _anonymise_links(customer)
    Connection.objects.filter(customer=customer).update(
        display_phone_number="",
        phone_digits="",
        verified_name="",
        health_error="",
        health_problems=[],
        restrictions=[],
    )
    _anonymise_events(customer)
    Invitation.objects.filter(customer=customer).update(last_error="", email_error="")
    of_customer = Q(customer=customer) | Q(setup_link__customer=customer)
    IdempotentRequest.objects.filter(of_customer).delete()
    now = timezone.now()
    Customer.objects.filter(pk=pk).update(
        name=f"#{pk}",  # ``Customer.__str__`` says what it is, in the reader's language
        email="",
        external_customer_id=None,
        owner_type=None,
        owner_id=None,
        language="",
        connect_key=None,
        erased_at=customer.erased_at or now,
        updated_at=now,
    )
    update_status(customer)


def _anonymise_links(customer: Customer) -> None:
    links = SetupLink.objects.filter(customer=customer)
    _remove_options(SetupLink, links)
    links.update(
        url="",
        next_url="",
        unconfirmed_phone_number_id="",
        unconfirmed_since=None,
        unconfirmed_by_visitor=False,
    )
    # A batch that reconnects a number is about one customer.
    _remove_options(
        InvitationBatch,
        InvitationBatch.objects.filter(
            invitations__customer=customer, options__has_key="reconnect_phone_number"
        ),
    )


def _remove_options(model: type[SetupLink | InvitationBatch], rows: QuerySet[Any]) -> None:
    """Remove the ``PERSONAL_OPTIONS`` from the options of ``rows``."""
    changed = list(rows.only("options"))
    for row in changed:
        row.options = _without(row.options, PERSONAL_OPTIONS)
    model.objects.bulk_update(changed, ["options"], batch_size=ROWS_PER_QUERY)


def _without(values: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in set(names)}


def _anonymise_events(customer: Customer) -> None:
    events = TimelineEvent.objects.filter(customer=customer)
    changed = []
    for event in events.only("data").iterator(ROWS_PER_QUERY):
        if personal := event.data.keys() - KEPT_DATA:
            event.data = _without(event.data, personal)
            changed.append(event)
    TimelineEvent.objects.bulk_update(changed, ["data"], batch_size=ROWS_PER_QUERY)
    events.update(last_error="", dismissed_because="")


def webhooks_of(customer: Customer) -> QuerySet[WebhookEvent]:
    """Return the webhooks about ``customer`` that are finished, or failed: those with an event in
    its timeline, and those that name it, one of its numbers, or an account of theirs.

    Those that wait are left out: their bodies are needed until they are processed.
    """
    numbers = list(customer.connections.values_list("phone_number_id", "business_account_id"))
    named = Q(pk__in=TimelineEvent.objects.filter(customer=customer).values("webhook_event"))
    number_ids = [number_id for number_id, _account_id in numbers]
    for path in ("payload__phone_number_id", "payload__whatsapp_config__phone_number_id"):
        named |= Q(**{f"{path}__in": number_ids})
    if customer.kapso_id:
        for path in ("customer__id", "customer_id", "whatsapp_config__customer_id"):
            named |= Q(**{f"payload__{path}": customer.kapso_id})
    # Other customers may have numbers of the same account, and need what failed.
    account_ids = sorted({account_id for _number_id, account_id in numbers if account_id})
    named |= Q(payload__business_account_id__in=account_ids) & ~Q(status=WebhookEvent.Status.FAILED)
    return WebhookEvent.objects.filter(named).exclude(status=WebhookEvent.Status.PENDING)


def _anonymise_webhooks(customer: Customer) -> None:
    """Empty the bodies of the webhooks. Their rows stay: they say that a delivery is a duplicate.
    One that failed cannot be run again, so it is ignored from now on."""
    status = WebhookEvent.Status
    for pks in _chunks(webhooks_of(customer).values_list("pk", flat=True)):
        rows = WebhookEvent.objects.filter(pk__in=pks)
        rows.filter(status=status.FAILED).update(
            status=status.IGNORED, processed_at=timezone.now(), next_attempt_at=None
        )
        rows.update(payload={}, last_error="", dismissed_because="")


def _anonymise_history(customer: Customer) -> None:
    """Neutralise the entries about ``customer`` and its rows in the admin's history, and in that of
    its owner the same entries."""
    if not apps.is_installed("django.contrib.admin"):
        return
    from django.contrib.admin.models import LogEntry

    about = LogEntry.objects.filter(
        content_type=ContentType.objects.get_for_model(Customer), object_id=str(customer.pk)
    )
    texts = {text for text in about.values_list("change_message", flat=True) if text}
    # Django's own messages, in JSON, say which fields were changed: those of the owner stay.
    own_texts = sorted(text for text in texts if not text.startswith("["))
    if customer.owner_type_id and customer.owner_id:
        for chunk in _chunks(own_texts):
            LogEntry.objects.filter(
                content_type=customer.owner_type_id,
                object_id=customer.owner_id,
                change_message__in=chunk,
            ).update(change_message="")
    neutral = {"object_repr": f"#{customer.pk}", "change_message": ""}
    about.update(**neutral)
    for model in (Connection, SetupLink, TimelineEvent):
        rows: QuerySet[Model] = model._default_manager.filter(customer=customer)
        for pks in _chunks(rows.values_list("pk", flat=True)):
            LogEntry.objects.filter(
                content_type=ContentType.objects.get_for_model(model),
                object_id__in=[str(pk) for pk in pks],
            ).update(**neutral)


def _chunks(values: Iterable[Any]) -> Iterator[list[Any]]:
    """Yield ``values`` in lists of ``ROWS_PER_QUERY``."""
    remaining = iter(list(values))
    while chunk := list(islice(remaining, ROWS_PER_QUERY)):
        yield chunk
