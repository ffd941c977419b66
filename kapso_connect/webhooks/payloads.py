"""From the bytes Kapso posts to typed events: the only place that knows the formats of bodies."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from ..exceptions import MalformedBody, MalformedPayload
from ..kapso.types import ConnectionType, parse_moment
from ..utils import as_aware, as_stored, utc_now

MAX_BATCH_SIZE = 1000
MAX_PAYLOAD_DEPTH = 24
"""MariaDB's JSON columns allow 32 levels; no payload of Kapso's has more than 6."""

UNNAMED_EVENT = "(unnamed)"

NOT_AN_OBJECT = "The body must be a JSON object."

SIGNATURE_CHECK_BODY = b'["kapso_connect"]'
"""What ``registration.check_signature`` posts. It is not a JSON object, so it is not a delivery: if
its signature is valid, the answer is a 400 that says so, and nothing is stored."""

SAMPLE_NUMBER = "123456789012345"
"""The ``phone_number_id`` in Kapso's samples and test deliveries. For a customer who is not known
here, it is a test delivery; for one who is, a developer is trying out the documentation."""

MESSAGE_EVENTS = (
    "whatsapp.message.",
    "whatsapp.conversation.",
    "whatsapp.contact.",
    "whatsapp.meta_business_agent.",
)
"""How the names of the events begin that are about what is written with a number."""

META_OBJECT = "whatsapp_business_account"
"""The ``object`` of a body that is Meta's own, as webhooks of kind "meta" get it."""

REDACTED = "***"

ENVELOPE_FIELDS = {
    *("data", "batch", "batch_info", "test"),
    *("id", "created_at", "occurred_at", "timestamp", "project", "project_id"),
}
"""What an envelope may have beside the event's name. With anything else in it, and no name, an
object is the payload."""

CONFIG_FIELDS = ("phone_number_id", "business_account_id", "customer_id")
"""What version 1 may have in ``whatsapp_config``."""

FLAT_EVENTS = "kapso_agent."
"""How the names of the events begin whose payload has a part called ``data``, and no envelope."""

_separators = re.compile("[^a-z0-9]")
# A value under one of these names is secret, whatever the name's case and separators are.
_secret_name = re.compile(
    "secret|password|passwd|passphrase|credential|authorization|^pin$"
    "|(token|apikey|privatekey|accesskey|cookie|(setup|setuplink|connect|onboarding)url)$"
)
_setup_link_fields = {"whatsapp_setup_status", "success_redirect_url", "failure_redirect_url"}
# Kapso's hosted page, at its newer and its older address.
_hosted_page = re.compile(r"https?://(setup\.[^/\s]+/s/|[^/\s]+/whatsapp/setup/)[^\s\"'<>]+")

_safe_key = re.compile(r"[0-9a-z][0-9a-z._-]{0,79}")
_digits = re.compile(r"[0-9]{1,64}")
_id = re.compile(r"[0-9A-Za-z_-]{1,64}")
# What JSON can contain but a database cannot: U+0000 and halves of surrogate pairs.
_unstorable = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True)
class PhoneNumberEvent:
    """The payload of ``whatsapp.phone_number.*``. "" and None are what Kapso left out."""

    event_id: str
    phone_number_id: str
    customer_id: str
    external_customer_id: str
    occurred_at: datetime | None
    connection_type: str
    business_account_id: str
    reason: str
    initiated_by: str
    source_event: str = ""


@dataclass(frozen=True)
class AccountEvent:
    """The payload of ``whatsapp.account.*``: a WhatsApp Business account and its numbers."""

    event_id: str
    business_account_id: str
    phone_number_ids: tuple[str, ...]
    occurred_at: datetime
    restrictions: list[dict[str, Any]]
    details: dict[str, Any]


Event: TypeAlias = PhoneNumberEvent | AccountEvent


@dataclass(frozen=True)
class Message:
    """One event of a delivery, as the inbox stores it.

    ``is_name_signed`` is True if the name is in the signed body, False if only in a header.
    ``event`` is its content as typed values; None for a name that this app does not handle, a test
    delivery, and a malformed payload. ``error`` says why the payload cannot be used.

    ``body_digest`` is that of the whole signed body. Two messages with the same ``digest`` are the
    same delivery: the same body, name and idempotency key. A body that says itself which event it
    is (by an id or a time) is the same delivery under any key, since keys are not signed.
    """

    key: str
    name: str
    payload: dict[str, Any]
    event: Event | None = None
    error: str = ""
    is_name_signed: bool = False
    body_digest: str = ""
    digest: str = ""

    @property
    def is_about_messages(self) -> bool:
        """True for an event about what is written with a number, as its own webhook gets them."""
        return self.name.startswith(MESSAGE_EVENTS) or (
            self.payload.get("object") == META_OBJECT and not self.is_name_signed
        )


def parse(body: bytes, headers: Mapping[str, str], *, for_inbox: bool = True) -> list[Message]:
    """Return the events in a signed body, in any of Kapso's three forms: one event as it is, one
    event in an envelope, or a batch. Without ``for_inbox``, payloads keep what looks like a
    credential or the URL of a setup link.

    The event's name is taken from the body if it is there, since headers are not signed. An
    envelope may have the name, or leave it to the header. A batch is marked in the body or in a
    header, or is an envelope around a list.
    Raise MalformedBody if the body is not a JSON object.
    """
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedBody("The body is not valid JSON.") from error
    if not isinstance(parsed, dict):
        raise MalformedBody(NOT_AN_OBJECT)
    header_name = headers.get("X-Webhook-Event", "")
    delivery = _Delivery(headers.get("X-Idempotency-Key", ""), header_name, body, for_inbox)
    data = parsed.get("data")
    is_marked = parsed.get("batch") is True or headers.get("X-Webhook-Batch", "").lower() == "true"
    if isinstance(data, list) and (is_marked or _is_plain_batch(parsed, header_name)):
        if len(data) > MAX_BATCH_SIZE:
            problem = f"A batch of {len(data)} events; at most {MAX_BATCH_SIZE} are allowed."
            return [delivery.message({"batch_size": len(data)}, _name_in_body(parsed), problem)]
        return [delivery.item(item, parsed, index) for index, item in enumerate(data)]
    return [delivery.item(parsed)]


class _Delivery:
    """What all events of a request have in common."""

    def __init__(self, given_key: str, header_name: str, body: bytes, redacts: bool) -> None:
        self.redacts = redacts
        self.given_key = given_key
        self.key = _idempotency_key(given_key, header_name, body)
        self.header_name = header_name
        self.body_digest = hashlib.sha256(body).hexdigest()

    def item(
        self, item: object, batch: Mapping[str, Any] | None = None, index: int | None = None
    ) -> Message:
        """Return one event: all of the body, or what a ``batch`` has at ``index``."""
        around = [batch] if batch else []  # the objects that the payload is in
        name = _name_in_body(batch) if batch else ""
        payload, error = item, ""
        if isinstance(item, dict):
            name = _name_in_body(item) or name
            if isinstance(item.get("data"), dict) and _is_envelope(item, name or self.header_name):
                around.append(item)
                payload = item["data"]
        if not isinstance(payload, dict):
            payload, error = {"item": payload}, "An event must be an object."
        elif any(part.get("test") is True for part in around):
            payload = {**payload, "test": True}
        has_identity = not is_test(payload) and any(map(_has_identity, [*around, payload]))
        try:
            payload = storable(payload, redacts=self.redacts)
        except RecursionError:
            payload, error = {}, f"The payload is nested deeper than {MAX_PAYLOAD_DEPTH} levels."
        return self.message(payload, name, error, index=index, has_identity=has_identity)

    def message(
        self,
        payload: dict[str, Any],
        name_in_body: str,
        error: str,
        *,
        index: int | None = None,
        has_identity: bool = False,
    ) -> Message:
        name = _clip(name_in_body or self.header_name)
        key = "" if has_identity else self.given_key
        same = json.dumps([self.body_digest, index, name, key])
        event, error = read(name, payload, error)
        return Message(
            key=self.key if index is None else f"{self.key}:{index}",
            name=name,
            payload=payload,
            event=event,
            error=error,
            is_name_signed=bool(name_in_body),
            body_digest=self.body_digest,
            digest=hashlib.sha256(same.encode()).hexdigest(),
        )


def read(name: str, payload: dict[str, Any], error: str = "") -> tuple[Event | None, str]:
    """Return the ``payload`` of the event called ``name`` as typed values, or None, and the error
    that it has."""
    parser = PARSERS.get(name)
    if parser is None or error or is_test(payload):
        return None, error
    try:
        return parser(payload), ""
    except MalformedPayload as malformed:
        return None, str(malformed)


def _has_identity(payload: Mapping[str, Any]) -> bool:
    """Return True if the same payload can only be the same event: it has a time, an id of its own
    (not that of a number), or a message that has one."""
    message = payload.get("message")
    ids = [payload.get("occurred_at"), payload.get("created_at")]
    ids.append(message.get("id") if isinstance(message, dict) else None)
    if payload.get("id") != payload.get("phone_number_id"):
        ids.append(payload.get("id"))
    return any(isinstance(value, (str, int)) and bool(value) for value in ids)


def _is_envelope(item: Mapping[str, Any], name: str) -> bool:
    """Return whether the ``data`` of ``item`` is the payload of the event called ``name``, and not
    a part of the payload."""
    if name.startswith(FLAT_EVENTS):
        return False
    return bool(_name_in_body(item)) or item.keys() <= ENVELOPE_FIELDS


def _is_plain_batch(body: Mapping[str, Any], header_name: str) -> bool:
    """Return whether ``body``, whose ``data`` is a list, is a batch that is not marked as one."""
    items, name = body["data"], _name_in_body(body)
    names = {"event", "type"} if name else set()
    return (
        bool(items)
        and all(isinstance(item, dict) for item in items)
        and body.keys() <= ENVELOPE_FIELDS | names
        and not (name or header_name).startswith(FLAT_EVENTS)
    )


def _name_in_body(item: Mapping[str, Any]) -> str:
    """Return the event's name if the body has it, as ``event`` or as ``type``; otherwise ""."""
    for field in ("event", "type"):
        name = item.get(field)
        # A payload without an envelope may have its own "type"; only the names of events have dots.
        if isinstance(name, str) and "." in name:
            return name
    return ""


def _clip(name: str) -> str:
    return _unstorable.sub("\ufffd", name.strip())[:100] or UNNAMED_EVENT


def _idempotency_key(given: str, name: str, body: bytes) -> str:
    # Databases differ on whether "a" and "A" are the same key. Kapso's keys are used as they are.
    if _safe_key.fullmatch(given):
        return given
    # ``created`` and ``deleted`` have the same body: without a key, the name distinguishes them.
    content = given.encode("utf-8", "replace") or name.encode("utf-8", "replace") + b"\n" + body
    return "sha256-" + hashlib.sha256(content).hexdigest()


def is_test(payload: Mapping[str, Any]) -> bool:
    """Return True for a delivery that was only sent to see whether it arrives. ``handlers`` knows
    others: those about ``SAMPLE_NUMBER``."""
    return payload.get("test") is True


def storable(value: Any, depth: int = 0, name: str = "", *, redacts: bool = True) -> Any:
    """Return ``value`` so that every database can store it as JSON, and if it ``redacts``, without
    credentials and the URLs of setup links. ``name`` is that of the member of an object whose value
    it is.

    Raise RecursionError if it is nested deeper than MAX_PAYLOAD_DEPTH.
    """
    if depth > MAX_PAYLOAD_DEPTH:
        raise RecursionError
    if isinstance(value, str):
        text = _unstorable.sub("\ufffd", value)
        return _hosted_page.sub(REDACTED, text) if redacts else text
    if isinstance(value, dict):
        secret_names = _secret_names(value, name) if redacts else ()
        return {
            storable(key, redacts=redacts): REDACTED
            if key in secret_names
            else storable(item, depth + 1, key, redacts=redacts)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [storable(item, depth + 1, name, redacts=redacts) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and abs(value) >= 2**63:
        return str(value)
    return value


def _secret_names(values: Mapping[str, Any], name: str) -> set[str]:
    """Return the names of the members that are secret, of an object that is called ``name``."""
    secret = {key for key, value in values.items() if _is_secret(key, value)}
    if "setuplink" in _plain(name) or not _setup_link_fields.isdisjoint(values):
        secret |= {"url"} & values.keys()
    # {"name": "Authorization", "value": …}, as headers are often written
    label = values.get("name") or values.get("key")
    if isinstance(label, str) and _is_secret(label, values.get("value")):
        secret.add("value")
    return secret


def _is_secret(name: str, value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return False  # "has_password": true
    plain = _plain(name)
    if plain.endswith("tokens"):
        return not isinstance(value, (int, float))  # not the number of tokens that a model used
    return bool(_secret_name.search(plain))


def _plain(name: str) -> str:
    return _separators.sub("", name.lower())


def parse_phone_number_event(payload: Mapping[str, Any]) -> PhoneNumberEvent:
    """Return the payload of ``whatsapp.phone_number.*``, of version 2 or 1, as typed values.

    Version 1 has ``customer_id``, and may have what is about the number in ``whatsapp_config``.
    Raise MalformedPayload, with a message for staff, if an id is missing or not an id.
    """
    payload = _with_config(payload)
    customer = _object(payload, "customer")
    source = _object(payload, "source")
    disconnection = _object(payload, "disconnection")
    return PhoneNumberEvent(
        event_id=_text(payload, "id"),
        phone_number_id=_required(payload, "phone_number_id", _digits, "a string of digits"),
        customer_id=_optional_id(customer, "id") or _optional_id(payload, "customer_id"),
        external_customer_id=_text(customer, "external_id")
        or _text(customer, "external_customer_id")
        or _text(payload, "external_customer_id"),
        occurred_at=occurred_at(payload),
        connection_type=_connection_type(payload),
        business_account_id=_optional_id(payload, "business_account_id")
        or _optional_id(source, "business_account_id"),
        reason=_text(disconnection, "reason"),
        initiated_by=_text(disconnection, "initiated_by"),
        source_event=_text(source, "event"),
    )


def _with_config(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return ``payload`` with what version 1 has in ``whatsapp_config`` only."""
    config = payload.get("whatsapp_config")
    if not isinstance(config, dict):
        return payload
    names = [name for name in CONFIG_FIELDS if payload.get(name) is None and name in config]
    return {**payload, **{name: config[name] for name in names}}


def parse_account_event(payload: Mapping[str, Any]) -> AccountEvent:
    """Return the payload of ``whatsapp.account.*`` as typed values.

    Raise MalformedPayload, with a message for staff, if the id of the account or the time is
    missing, or a part is not in Kapso's format.
    """
    numbers = [
        _required(number, "id", _digits, "a string of digits")
        for number in _objects(payload, "phone_numbers")
    ]
    details = {name: _object(payload, name) for name in ("violation", "ban", "source")}
    return AccountEvent(
        event_id=_text(payload, "id"),
        business_account_id=_required(payload, "business_account_id", _id, "an id"),
        phone_number_ids=tuple(numbers),
        occurred_at=_required_moment(payload),
        restrictions=_objects(payload, "restrictions"),
        details={name: value for name, value in details.items() if value},
    )


def occurred_at(payload: Mapping[str, Any]) -> datetime | None:
    """Return when the event happened, or None if the payload does not say. It is never later than
    now: what is said to happen in the future would outdate everything until then."""
    text = _text(payload, "occurred_at")
    try:
        return as_stored(min(as_aware(parse_moment(text)), utc_now())) if text else None
    except ValueError:
        raise MalformedPayload(
            "occurred_at is not a date and time, or beyond what can be stored."
        ) from None


def _required_moment(payload: Mapping[str, Any]) -> datetime:
    moment = occurred_at(payload)
    if moment is None:
        raise MalformedPayload("occurred_at is missing.")
    return moment


def _connection_type(payload: Mapping[str, Any]) -> str:
    connection_type = _text(payload, "connection_type")
    return connection_type if connection_type in ConnectionType.values else ""


def _get(payload: Mapping[str, Any], name: str, kind: type[Any], expected: str) -> Any:
    """Return a member of ``payload``, or None if it has none. Raise MalformedPayload if the member
    is not a ``kind``, which ``expected`` describes."""
    value = payload.get(name)
    if value is not None and not isinstance(value, kind):
        names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
        found = names.get(type(value), "a number")
        raise MalformedPayload(f"{name} must be {expected}, not {found}.")
    return value


def _object(payload: Mapping[str, Any], name: str) -> dict[str, Any]:
    return _get(payload, name, dict, "an object") or {}


def _objects(payload: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    value = payload.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise MalformedPayload(f"{name} must be a list of objects.")
    return value


def _text(payload: Mapping[str, Any], name: str) -> str:
    value: str = _get(payload, name, str, "a string") or ""
    if len(value) > 255:
        raise MalformedPayload(f"{name} is {len(value)} characters long; at most 255 are allowed.")
    return value


def _required(
    payload: Mapping[str, Any], name: str, pattern: re.Pattern[str], expected: str
) -> str:
    value: str = _get(payload, name, str, expected) or ""
    if not value:
        raise MalformedPayload(f"{name} is missing.")
    if not pattern.fullmatch(value):
        raise MalformedPayload(f"{name} must be {expected}, at most 64 characters long.")
    return value


def _optional_id(payload: Mapping[str, Any], name: str) -> str:
    if payload.get(name) in (None, ""):
        return ""
    return _required(payload, name, _id, "an id (letters, digits, - and _)")


PARSERS: dict[str, Callable[[Mapping[str, Any]], Event]] = {
    "whatsapp.phone_number.created": parse_phone_number_event,
    "whatsapp.phone_number.reconnected": parse_phone_number_event,
    "whatsapp.phone_number.deleted": parse_phone_number_event,
    "whatsapp.phone_number.offboarded": parse_phone_number_event,
    "whatsapp.phone_number.disconnected": parse_phone_number_event,
    "whatsapp.account.disabled": parse_account_event,
    "whatsapp.account.restricted": parse_account_event,
    "whatsapp.account.reinstated": parse_account_event,
    "whatsapp.account.violation": parse_account_event,
}
"""By the name of the event. What each of them changes is in ``handlers``."""

ACCOUNT_EVENTS = frozenset(name for name in PARSERS if PARSERS[name] is parse_account_event)
"""Meta's decisions about accounts."""
