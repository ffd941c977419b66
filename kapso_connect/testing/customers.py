"""Customers who are invited, connect and disconnect, without Kapso and without the sandbox.

They call the functions that production calls, so rows, the timeline and the signals are those of a
real customer. ``on_commit`` callbacks run before a function returns, also inside the transaction of
a ``TestCase`` or of ``pytest.mark.django_db``. Kapso is not asked, also with ``NUMBER_WEBHOOK``.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, cast

from django.contrib.auth.models import AbstractBaseUser
from django.db.models import Model
from django.utils import timezone
from django.utils.crypto import get_random_string

from .. import onboarding
from ..kapso.client import KapsoClient
from ..kapso.types import ConnectionType, KapsoCustomer, KapsoSetupLink
from ..models import Connection, Customer, SetupLink, Source, TimelineEvent
from ..onboarding import accounts, setup_links
from ..onboarding.numbers import Number
from ..sandbox.state import new_meta_id
from ..webhooks.number_webhooks import left_to_sync
from .webhooks import run_on_commit_callbacks


class _FakeClient:
    """The part of KapsoClient that an invitation uses. Every request succeeds."""

    def find_customer(self, external_customer_id: str) -> None:
        return None

    def create_customer(self, *, name: str, external_customer_id: str | None) -> KapsoCustomer:
        return KapsoCustomer(str(uuid.uuid4()), name, timezone.now(), external_customer_id)

    def create_setup_link(self, customer_id: str, options: Mapping[str, Any]) -> KapsoSetupLink:
        now = timezone.now()
        return KapsoSetupLink(
            id=str(uuid.uuid4()),
            url=f"https://kapso.invalid/setup/{get_random_string(20)}",
            status=SetupLink.Status.ACTIVE.value,
            created_at=now,
            expires_at=now + timedelta(days=30),
        )


def invite_customer(
    customer: Customer | None = None,
    *,
    owner: Model | None = None,
    name: str = "Ada's Bakery",
    options: Mapping[str, Any] | None = None,
    next_url: str = "",
    created_by: AbstractBaseUser | None = None,
) -> SetupLink:
    """Create a setup link as ``onboarding.create_setup_link`` does, without a request to Kapso.

    It is for ``customer``, for the customer of ``owner`` (one of your own objects), or else for a
    new customer called ``name``. Its ``url`` leads nowhere: continue with ``connect_customer`` or
    ``fail_setup``. ``PUBLIC_URL`` has to be set. Raise ValueError for both ``customer`` and
    ``owner``, and what ``create_setup_link`` raises for wrong ``options`` or ``next_url``.
    """
    with run_on_commit_callbacks():
        return onboarding.create_setup_link(
            _customer(customer, owner, name),
            options=options,
            next_url=next_url,
            created_by=created_by,
            client=cast(KapsoClient, _FakeClient()),
        )


def connect_customer(
    customer: Customer | None = None,
    *,
    owner: Model | None = None,
    name: str = "Ada's Bakery",
    setup_link: SetupLink | None = None,
    phone_number_id: str = "",
    phone_number: str = "",
    verified_name: str = "",
    connection_type: str = ConnectionType.COEXISTENCE,
    business_account_id: str = "",
    source: str = Source.WEBHOOK,
) -> Connection:
    """Connect a number for a customer; ``whatsapp_connected`` is sent.

    The customer is that of ``setup_link``, ``customer``, the customer of ``owner`` (one of your own
    objects), or else a new one called ``name``. Without ``setup_link`` the number is connected
    through the customer's usable link, if there is one. ``phone_number`` is as people write it,
    ``phone_number_id`` and ``business_account_id`` are Meta's digits; what is not given is random.
    ``source`` is "webhook", "redirect" or "sync". A number of another customer moves to this one.
    Raise ValueError for arguments that name more than one customer.
    """
    if setup_link is not None:
        if owner is not None or customer not in (None, setup_link.customer):
            raise ValueError("The customer is the setup link's: leave customer and owner out.")
        customer = setup_link.customer
    whose = _customer(customer, owner, name)
    if whose.kapso_id is None:
        whose.kapso_id = str(uuid.uuid4())
        whose.save(update_fields=["kapso_id", "updated_at"])
    number = Number(
        phone_number_id=phone_number_id or new_meta_id(),
        display_phone_number=phone_number or f"+1 415-555-{get_random_string(4, '0123456789')}",
        verified_name=verified_name or whose.name,
        connection_type=connection_type,
        business_account_id=business_account_id or new_meta_id(),
    )
    kind = TimelineEvent.Kind.CONNECTED
    return _connect(whose, number, source=source, kind=kind, setup_link=setup_link)


def disconnect_customer(
    connection: Connection, *, reason: str = "deleted", source: str = Source.WEBHOOK
) -> Connection:
    """Disconnect a number; ``whatsapp_disconnected`` is sent, with ``reason`` in ``event.data``."""
    with left_to_sync(), run_on_commit_callbacks():
        number, data = connection.phone_number_id, {"reason": reason}
        onboarding.disconnect(number, source=source, asked_at=_later(), data=data, is_gone=True)
    connection.refresh_from_db()
    return connection


def reconnect_customer(connection: Connection, *, source: str = Source.WEBHOOK) -> Connection:
    """Reconnect a disconnected number; ``whatsapp_reconnected`` is sent."""
    number = Number(connection.phone_number_id)
    kind = TimelineEvent.Kind.RECONNECTED
    _connect(connection.customer, number, source=source, kind=kind, setup_link=None)
    connection.refresh_from_db()
    return connection


def fail_setup(
    setup_link: SetupLink,
    error_code: str = "facebook_auth_failed",
    *,
    source: str = Source.REDIRECT,
) -> SetupLink:
    """Fail a customer's setup; ``whatsapp_setup_failed`` is sent.

    ``error_code`` is one of Kapso's: see ``kapso_connect.kapso.error_codes.SETUP_ERRORS``.
    """
    with run_on_commit_callbacks():
        setup_links.record_failure(setup_link, error_code, source=source)
    setup_link.refresh_from_db()
    return setup_link


def update_account(
    connection: Connection, decision: str, *, source: str = Source.WEBHOOK, **data: Any
) -> Connection:
    """Change the status of the number's WhatsApp account; ``whatsapp_account_updated`` is sent.

    ``decision`` is Meta's: "restricted", "disabled", "reinstated" or "violation". ``data`` holds
    further fields of Kapso's webhook, such as ``violation={"type": "SPAM"}``.
    """
    # Only a later update counts, also in a test that stopped the clock.
    latest = max(timezone.now(), connection.account_updated_at or timezone.now())
    with run_on_commit_callbacks():
        accounts.update_account(
            decision,
            business_account_id=connection.business_account_id,
            phone_number_ids=[connection.phone_number_id],
            source=source,
            event_id=str(uuid.uuid4()),
            occurred_at=latest + timedelta(microseconds=1),
            restrictions=data.pop("restrictions", ()),
            data=data,
        )
    connection.refresh_from_db()
    return connection


def _customer(customer: Customer | None, owner: Model | None, name: str) -> Customer:
    if customer is not None and owner is not None:
        raise ValueError("Give a customer or an owner, not both.")
    if owner is not None:
        return Customer.objects.for_owner(owner)
    return customer or Customer.objects.create(name=name)


def _connect(
    customer: Customer, number: Number, *, source: str, kind: str, setup_link: SetupLink | None
) -> Connection:
    with left_to_sync(), run_on_commit_callbacks():
        connection = onboarding.connect(
            customer, number, source=source, setup_link=setup_link, asked_at=_later(), kind=kind
        )
    connection.refresh_from_db()
    return connection


def _later() -> datetime:
    """Return a time after everything recorded so far, also in a test that stopped the clock."""
    return timezone.now() + timedelta(seconds=1)
