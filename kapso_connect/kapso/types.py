"""What Kapso's API returns, as typed values."""

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
from django.utils.translation import gettext_lazy as _

from ..utils import as_stored

T = TypeVar("T")


class ConnectionType(models.TextChoices):
    COEXISTENCE = "coexistence", _("Coexistence (keeps the WhatsApp Business app)")
    DEDICATED = "dedicated", _("Dedicated (API only)")


@dataclass(frozen=True)
class KapsoCustomer:
    """A customer of ours as Kapso knows it; ``external_customer_id`` is our own id for it."""

    id: str
    name: str
    created_at: datetime
    external_customer_id: str | None = None


@dataclass(frozen=True)
class KapsoSetupLink:
    """A hosted page for one customer. Who has ``url`` or ``token`` can use it, so neither is shown
    in the repr. ``token`` is in the answer to creating the link only.

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
    """A connected WhatsApp number. ``phone_number_id`` is Meta's and the primary identifier;
    without ``customer_id`` the number is the Kapso project's own."""

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
    """What Kapso found when it last looked at a number; it looks at most every 3 minutes.

    ``status``: healthy, degraded, unhealthy or error. ``checks``: name to ``{passed, details,
    error}``, as Kapso sent it.
    """

    status: str
    timestamp: datetime
    error: str | None = None
    checks: Mapping[str, Any] = field(default_factory=dict)


class SecretFingerprint:
    """A secret that can be recognised and not be read: only a fingerprint of it is kept.

    ``is_masked`` where Kapso showed stars or dots in its place, which say nothing about it.
    """

    _pepper = secrets.token_bytes(32)

    def __init__(self, text: str) -> None:
        self._fingerprint = self._take(text)
        self.is_masked = any(mark in text for mark in ("***", "•••", "...", "…"))

    @classmethod
    def _take(cls, text: str) -> bytes:
        return hmac.new(cls._pepper, text.encode("utf-8", "replace"), hashlib.sha256).digest()

    def is_same(self, text: str) -> bool:
        return hmac.compare_digest(self._fingerprint, self._take(text))


@dataclass(frozen=True)
class KapsoWebhook:
    """A webhook of the Kapso project; with a ``phone_number_id`` it is for that number's messages.

    ``secret`` is None where Kapso showed none.
    """

    id: str
    url: str
    kind: str
    events: tuple[str, ...]
    active: bool
    payload_version: str | None = None
    phone_number_id: str | None = None
    # Where Kapso has the secret in its answers; Kapso's own name is secret_key.
    secret: SecretFingerprint | None = field(default=None, compare=False, repr=False)


class _UnusableError(Exception):
    """Why an answer is not what the contract promises."""


def _parse(kind: type[T], data: object) -> T:
    """Return the ``kind`` that ``data`` describes. Unknown members are ignored, null is absent."""
    if not isinstance(data, Mapping):
        raise _UnusableError(f"a {kind.__name__} is not an object")
    values = {}
    for name, (read, required) in _SHAPES[kind].items():
        value = data.get(_RENAMED.get(name, name))
        if value is not None:
            try:
                values[name] = read(value)
            except (ValueError, OverflowError):
                raise _UnusableError(f"{name!r} of a {kind.__name__} is unusable") from None
        elif required:
            raise _UnusableError(f"a {kind.__name__} has no {name!r}")
    return kind(**values)


def _shape(kind: type[Any]) -> dict[str, tuple[Callable[[Any], Any], bool]]:
    """Return how each field of a dataclass is read from JSON, and whether it must be there."""
    hints = get_type_hints(kind)
    return {
        f.name: (_READERS[hints[f.name]], f.default is MISSING and f.default_factory is MISSING)
        for f in fields(kind)
    }


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    # JSON can spell what no database stores: half a surrogate pair, and NUL.
    return value.encode("utf-8", "replace").decode().replace("\0", "")


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _moment(value: object) -> datetime:
    moment = parse_datetime(_text(value))
    if moment is None:
        raise ValueError
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return as_stored(moment.astimezone(timezone.utc))


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
    bool: _flag,
    bool | None: _flag,
    datetime: _moment,
    datetime | None: _moment,
    tuple[str, ...]: _texts,
    Mapping[str, Any]: _mapping,
    SecretFingerprint | None: lambda value: SecretFingerprint(_text(value)),
}


_RENAMED = {"secret": "secret_key"}


_SHAPES: dict[type[Any], dict[str, tuple[Callable[[Any], Any], bool]]] = {
    kind: _shape(kind)
    for kind in (KapsoCustomer, KapsoSetupLink, KapsoPhoneNumber, KapsoHealth, KapsoWebhook)
}
