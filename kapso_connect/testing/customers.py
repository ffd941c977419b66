"""Customers who are invited, connect and disconnect, without Kapso and without the sandbox.

Everything goes through the same doors as in production: rows, the timeline and the signals are
those of a real customer. What waits for a commit happens before a function returns, also inside the
transaction of a ``TestCase`` or of ``pytest.mark.django_db``.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, cast
from urllib.parse import urlsplit

import requests
from django.contrib.auth.models import AbstractBaseUser
from django.core.exceptions import ImproperlyConfigured
from django.db.models import Model
from django.test import Client, TestCase
from django.urls import reverse
from django.utils import timezone
from django.utils.crypto import get_random_string

from .. import onboarding
from ..conf import get_conf
from ..db import alias
from ..kapso.client import KapsoClient
from ..kapso.types import ConnectionType, KapsoCustomer, KapsoSetupLink
from ..models import Connection, Customer, SetupLink, Source, TimelineEvent
from ..onboarding import accounts, numbers, setup_links
from .sandbox import webhook_headers

HTTP_TIMEOUT = 30.0


@contextmanager
def committed() -> Iterator[None]:
    """Let what waits for a commit happen at the end, even where a test never commits."""
    with TestCase.captureOnCommitCallbacks(using=alias(), execute=True):
        yield


class _Kapso:
    """The part of KapsoClient that an invitation asks: it agrees to everything."""

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
    """Give somebody a setup link, as ``onboarding.create_setup_link`` does; nobody is asked.

    It is for ``customer``, for the customer of ``owner`` (one of your own objects), or else for a
    new one called ``name``. Its ``url`` leads nowhere: go on with ``connect_customer`` or
    ``fail_setup``. ``PUBLIC_URL`` has to be set.
    """
    with committed():
        return onboarding.create_setup_link(
            _customer(customer, owner, name),
            options=options,
            next_url=next_url,
            created_by=created_by,
            client=cast(KapsoClient, _Kapso()),
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
    """Connect a number for somebody; ``whatsapp_connected`` is sent.

    It is for the customer of ``setup_link``, for ``customer``, for the customer of ``owner`` (one
    of your own objects), or else for a new one called ``name``. Without ``setup_link`` the
    customer's open one, where there is one, counts as the way they came. ``phone_number`` is as
    people write it, ``phone_number_id`` Meta's digits; both are made up where they are not given,
    and so is ``business_account_id``. ``source`` is who told: "webhook", "redirect" or "sync".
    A number that is another customer's moves.
    """
    if setup_link is not None:
        if owner is not None or customer not in (None, setup_link.customer):
            raise ValueError("The customer is the setup link's: leave customer and owner out.")
        customer = setup_link.customer
    whose = _customer(customer, owner, name)
    if whose.kapso_id is None:
        whose.kapso_id = str(uuid.uuid4())
        whose.save(update_fields=["kapso_id", "updated_at"])
    number = numbers.Number(
        phone_number_id=phone_number_id or _digits(),
        display_phone_number=phone_number or f"+1 415-555-{get_random_string(4, '0123456789')}",
        verified_name=verified_name or whose.name,
        connection_type=connection_type,
        business_account_id=business_account_id or _digits(),
    )
    return _connect(whose, number, source, TimelineEvent.Kind.CONNECTED, setup_link)


def disconnect_customer(
    connection: Connection, *, reason: str = "deleted", source: str = Source.WEBHOOK
) -> Connection:
    """Disconnect a number; ``whatsapp_disconnected`` is sent, with ``reason`` in ``event.data``."""
    with committed():
        onboarding.disconnect(
            connection.phone_number_id,
            source=source,
            asked_at=_later(),
            data={"reason": reason},
        )
    connection.refresh_from_db()
    return connection


def reconnect_customer(connection: Connection, *, source: str = Source.WEBHOOK) -> Connection:
    """Let a disconnected number work again; ``whatsapp_reconnected`` is sent."""
    number = numbers.Number(connection.phone_number_id)
    kind = TimelineEvent.Kind.RECONNECTED
    _connect(connection.customer, number, source, kind, None)
    connection.refresh_from_db()
    return connection


def fail_setup(
    setup_link: SetupLink,
    error_code: str = "facebook_auth_failed",
    *,
    source: str = Source.REDIRECT,
) -> SetupLink:
    """Let the customer come back without a number; ``whatsapp_setup_failed`` is sent.

    ``error_code`` is one of Kapso's: see ``failures.FAILURES``.
    """
    with committed():
        setup_links.record_failure(setup_link, error_code, source=source)
    setup_link.refresh_from_db()
    return setup_link


def update_account(
    connection: Connection, decision: str, *, source: str = Source.WEBHOOK, **data: Any
) -> Connection:
    """Let Meta decide about the number's account; ``whatsapp_account_updated`` is sent.

    ``decision`` is "restricted", "disabled", "reinstated" or "violation"; ``data`` is what Kapso
    tells besides, such as ``violation={"type": "SPAM"}``.
    """
    # News is what is later than what is known, even where a test stopped the clock.
    latest = max(timezone.now(), connection.account_updated_at or timezone.now())
    with committed():
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


# Webhooks


def webhook_payload(
    event: str, customer: Customer, phone_number_id: str = "", **more: Any
) -> dict[str, Any]:
    """Return the payload of ``whatsapp.phone_number.*`` or ``whatsapp.account.*``, in today's form.

    ``phone_number_id`` is made up where it is not given; ``more`` is laid over it.
    """
    number = phone_number_id or _digits()
    common = {
        "id": str(uuid.uuid4()),
        "event": event,
        "occurred_at": datetime.now().astimezone().isoformat(),
        "project": {"id": str(uuid.uuid4())},
    }
    if event.startswith("whatsapp.account."):
        account = {"business_account_id": _digits(), "phone_numbers": [{"id": number}]}
        return {**common, **account, **more}
    told: dict[str, Any] = {
        "phone_number_id": number,
        "customer": {"id": customer.kapso_id, "external_id": customer.external_customer_id},
    }
    if event in {"whatsapp.phone_number.created", "whatsapp.phone_number.deleted"}:
        return {**told, "project": common["project"], **more}
    return {**common, **told, **more}


def post_webhook(
    to: Client | str,
    event: str,
    payload: Mapping[str, Any] | bytes,
    *,
    idempotency_key: str | None = None,
    secret: str | None = None,
    batch_size: int = 0,
) -> Any:
    """Deliver ``payload`` as Kapso would, signed, and return the answer.

    ``to`` is Django's test client, or the address of a running site (``live_server.url``), to which
    the webhook's path is added where it has none. ``payload`` goes as it is where it is bytes.
    ``idempotency_key`` is made up when None; give one to deliver the same thing twice. ``secret``
    is the first of your ``WEBHOOK_SECRET`` when None.
    """
    if secret is None:
        secret = next(iter(get_conf().webhook_secret), None)
    if not secret:
        raise ImproperlyConfigured("KAPSO_CONNECT['WEBHOOK_SECRET'] is not set.")
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    headers = webhook_headers(
        body, secret, event=event, idempotency_key=idempotency_key, batch_size=batch_size
    )
    path = reverse("kapso_connect:webhook")
    if isinstance(to, str):
        url = to if urlsplit(to).path.strip("/") else to.rstrip("/") + path
        return requests.post(url, data=body, headers=headers, timeout=HTTP_TIMEOUT)
    with committed():
        # As by https, which is how Kapso comes: a site may redirect the rest.
        return to.post(path, body, content_type="application/json", headers=headers, secure=True)


# Helpers


def _customer(customer: Customer | None, owner: Model | None, name: str) -> Customer:
    if customer is not None and owner is not None:
        raise ValueError("Give a customer or an owner, not both.")
    if customer is not None:
        return customer
    if owner is not None:
        return Customer.objects.for_owner(owner)
    return Customer.objects.create(name=name)


def _connect(
    customer: Customer,
    number: numbers.Number,
    source: str,
    kind: str,
    setup_link: SetupLink | None,
) -> Connection:
    with committed():
        connection = onboarding.connect(
            customer, number, source=source, setup_link=setup_link, asked_at=_later(), kind=kind
        )
    connection.refresh_from_db()
    return connection


def _later() -> datetime:
    """Return a time after everything that was recorded, even where a test stopped the clock."""
    return timezone.now() + timedelta(seconds=1)


def _digits() -> str:
    return "1" + get_random_string(14, "0123456789")
