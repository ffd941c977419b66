"""What Kapso's API returns, as typed values; ``parse`` makes them from JSON."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from datetime import datetime, timezone
from typing import Any, TypeVar, get_type_hints

from django.db import models
from django.utils.dateparse import parse_datetime

from ..translation import gettext_lazy as _
from ..utils import as_stored

ValueT = TypeVar("ValueT")


class ConnectionType(models.TextChoices):
    """How a number is connected: whether it can still be used in the WhatsApp Business app."""

    COEXISTENCE = "coexistence", _("Coexistence (keeps the WhatsApp Business app)")
    DEDICATED = "dedicated", _("Dedicated (API only)")


@dataclass(frozen=True)
class KapsoCustomer:
    """One of this site's customers, at Kapso; ``external_customer_id`` is this site's id."""

    id: str
    name: str
    created_at: datetime
    external_customer_id: str | None = None


@dataclass(frozen=True)
class KapsoSetupLink:
    """A hosted page for one customer. Anyone who has ``url`` or ``token`` can use it, so the repr
    contains neither. Kapso sends ``token`` only when the link is created.

    ``status``: active, used, expired or revoked. ``whatsapp_setup_status``: pending, processing,
    completed or failed.
    """

    id: str
    status: str
    created_at: datetime
    url: str = field(repr=False)
    expires_at: datetime | None = None
    whatsapp_setup_status: str | None = None
    whatsapp_setup_error: str | None = None
    success_redirect_url: str | None = None
    failure_redirect_url: str | None = None
    language: str | None = None
    allowed_connection_types: tuple[str, ...] = ()
    meta_billing_mode: str | None = None
    provision_phone_number: bool | None = None
    reconnect_phone_number: str | None = None
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class KapsoPhoneNumber:
    """A connected WhatsApp number. ``phone_number_id`` is Meta's, and the primary identifier;
    without ``customer_id`` the number belongs to the Kapso project itself."""

    phone_number_id: str
    internal_id: str
    created_at: datetime
    updated_at: datetime
    customer_id: str | None = None
    business_account_id: str | None = None
    display_phone_number: str | None = None
    display_phone_number_normalized: str | None = None
    verified_name: str | None = None
    is_coexistence: bool | None = None
    status: str | None = None
    quality_rating: str | None = None
    name_status: str | None = None


@dataclass(frozen=True)
class KapsoHealth:
    """The result of Kapso's last check of a number; Kapso checks at most every 3 minutes.

    ``status``: healthy, degraded, unhealthy or error (the check could not run). ``checks``: name to
    ``{passed, details, error}``, as Kapso sent it; ``kapso.health.find_problems`` reads them. After
    repeated errors Kapso holds its answer: it is the same until ``retry_after``.
    """

    status: str
    timestamp: datetime
    error: str | None = None
    checks: Mapping[str, Any] = field(default_factory=dict)
    retry_after: datetime | None = None


class SecretFingerprint:
    """A secret that can be compared but not read: only its HMAC is kept, with a random key.

    ``is_masked`` is True if Kapso sent stars or dots in place of the secret.
    """

    def __init__(self, text: str) -> None:
        self._digest = _digest(text)
        self.is_masked = any(mark in text for mark in ("***", "•••", "...", "…"))

    def is_same(self, text: str) -> bool:
        """Return True if ``text`` is the secret; compared in constant time."""
        return hmac.compare_digest(self._digest, _digest(text))


_DIGEST_KEY = secrets.token_bytes(32)


def _digest(text: str) -> bytes:
    return hmac.new(_DIGEST_KEY, text.encode("utf-8", "replace"), hashlib.sha256).digest()


@dataclass(frozen=True)
class KapsoWebhook:
    """A webhook of the Kapso project; with a ``phone_number_id``, it is for that number's messages.

    ``secret_key`` is None if Kapso did not send it, since not all of its answers contain it.
    """

    id: str
    url: str
    kind: str
    events: tuple[str, ...]
    active: bool
    payload_version: str | None = None
    phone_number_id: str | None = None
    secret_key: SecretFingerprint | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class KapsoWebhookDelivery:
    """One delivery of a webhook, as Kapso tried to make it; one without ``webhook_id`` is of a
    webhook that was removed.

    ``status``: pending, delivered or failed. ``response_status`` is what the last attempt was
    answered with, or None without an answer.
    """

    id: str
    event: str
    status: str
    attempt_count: int
    created_at: datetime
    response_status: int | None = None
    delivered_at: datetime | None = None
    failed_at: datetime | None = None
    last_attempt_at: datetime | None = None
    webhook_id: str | None = None
    webhook_url: str | None = None
    phone_number_id: str | None = None


@dataclass(frozen=True)
class KapsoFunding:
    """Whether Kapso pays Meta for a WhatsApp Business account.

    ``status``: funded, pending, unknown, not_funded or revoked.
    """

    status: str


@dataclass(frozen=True)
class KapsoSentMessage:
    """A message that Meta has taken, which does not say that it was delivered: the events
    ``whatsapp.message.delivered`` and ``.failed`` name it by its ``id``."""

    id: str


class UnusableResponse(Exception):
    """An answer is not what Kapso's contract promises; the message says why."""


def parse(kind: type[ValueT], data: object) -> ValueT:
    """Return ``data``, parsed JSON, as a ``kind``, which is one of the types above.

    Unknown members are ignored, and null is the same as absent. Raise UnusableResponse.
    """
    if not isinstance(data, Mapping):
        raise UnusableResponse(f"a {kind.__name__} is not an object")
    values = {}
    for name, (read, required) in _FIELDS[kind].items():
        value = data.get(name)
        if value is not None:
            try:
                values[name] = read(value)
            except (ValueError, OverflowError):
                raise UnusableResponse(f"{name!r} of a {kind.__name__} is unusable") from None
        elif required:
            raise UnusableResponse(f"a {kind.__name__} has no {name!r}")
    return kind(**values)


def _read_fields(kind: type[Any]) -> dict[str, tuple[Callable[[Any], Any], bool]]:
    """Return for each field of a dataclass how it is read from JSON, and whether it is required."""
    hints = get_type_hints(kind)
    return {
        f.name: (_READERS[hints[f.name]], f.default is MISSING and f.default_factory is MISSING)
        for f in fields(kind)
    }


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    # JSON can contain what no database stores: half a surrogate pair, and NUL.
    return value.encode("utf-8", "replace").decode().replace("\0", "")


def _whole_number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


EARLIEST = datetime(1970, 1, 1, tzinfo=timezone.utc)
LATEST = datetime(9998, 12, 31, tzinfo=timezone.utc)
"""No time is stored that is not between these: in another time zone it could have no year."""


def parse_moment(value: object) -> datetime:
    """Return the time in an ISO 8601 text, in UTC unless it says otherwise, as this site stores it.

    Raise ValueError for anything else, and for a time that is not between EARLIEST and LATEST.
    """
    moment = _aware_moment(value)
    if not EARLIEST <= moment <= LATEST:
        raise ValueError
    return as_stored(moment.astimezone(timezone.utc))


def _nearest_moment(value: object) -> datetime:
    """Return what ``parse_moment`` does, but EARLIEST or LATEST for a time beyond them: a link that
    expires in the year 9999 is a link that does not expire."""
    moment = min(max(_aware_moment(value), EARLIEST), LATEST)
    return as_stored(moment.astimezone(timezone.utc))


def _aware_moment(value: object) -> datetime:
    moment = parse_datetime(_text(value))
    if moment is None:
        raise ValueError
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError
    return tuple(_text(entry) for entry in value)


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError
    return value


_READERS: dict[object, Callable[[Any], Any]] = {
    str: _text,
    str | None: _text,
    int: _whole_number,
    int | None: _whole_number,
    bool: _flag,
    bool | None: _flag,
    datetime: _nearest_moment,
    datetime | None: _nearest_moment,
    tuple[str, ...]: _texts,
    Mapping[str, Any]: _mapping,
    SecretFingerprint | None: lambda value: SecretFingerprint(_text(value)),
}

_FIELDS: dict[type[Any], dict[str, tuple[Callable[[Any], Any], bool]]] = {
    kind: _read_fields(kind)
    for kind in (
        KapsoCustomer,
        KapsoSetupLink,
        KapsoPhoneNumber,
        KapsoHealth,
        KapsoWebhook,
        KapsoWebhookDelivery,
        KapsoFunding,
        KapsoSentMessage,
    )
}
