"""From the bytes Kapso posts to typed events: the only place that knows the formats of bodies."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..exceptions import MalformedBody, MalformedPayload
from ..kapso.types import ConnectionType, parse_moment

MAX_BATCH_SIZE = 1000
MAX_PAYLOAD_DEPTH = 24
"""MariaDB's JSON columns allow 32 levels; no payload of Kapso's has more than 6."""

UNNAMED_EVENT = "(unnamed)"

NOT_AN_OBJECT = "The body must be a JSON object."

SIGNATURE_CHECK_BODY = b'["kapso_connect"]'
"""What ``registration.check_signature`` posts. It is not a JSON object, so it is not a delivery: if
its signature is valid, the answer is a 400 that says so, and nothing is stored."""

SAMPLE_NUMBER = "123456789012345"
"""The ``phone_number_id`` in Kapso's samples and test deliveries. No customer has this number."""

# Values under these names are credentials, wherever they are in a payload.
SECRET_NAMES = {"token", "access_token", "api_key", "secret", "secret_key", "password"}

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


@dataclass(frozen=True)
class AccountEvent:
    """The payload of ``whatsapp.account.*``: a WhatsApp Business account and its numbers."""

    event_id: str
    business_account_id: str
    phone_number_ids: tuple[str, ...]
    occurred_at: datetime | None
    restrictions: list[dict[str, Any]]
    details: dict[str, Any]


@dataclass(frozen=True)
class Message:
    """One event of a delivery, as the inbox stores it.

    ``event`` is its content as typed values; None for a name that this app does not handle, a test
    delivery, and a malformed payload. ``error`` says why the payload cannot be used.
    """

    key: str
    name: str
    payload: dict[str, Any]
    event: PhoneNumberEvent | AccountEvent | None = None
    error: str = ""


def parse(body: bytes, headers: Mapping[str, str]) -> list[Message]:
    """Return the events in a signed body, in any of Kapso's three forms: one event without its
    name, one event in an envelope with its name, or a batch.

    The event's name is taken from the body if it is there, since headers are not signed.
    Raise MalformedBody if the body is not a JSON object.
    """
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedBody("The body is not valid JSON.") from error
    if not isinstance(parsed, dict):
        raise MalformedBody(NOT_AN_OBJECT)
    header_name = headers.get("X-Webhook-Event", "")
    key = _idempotency_key(headers.get("X-Idempotency-Key", ""), header_name, body)
    data = parsed.get("data")
    if isinstance(data, list) and (
        parsed.get("batch") is True or headers.get("X-Webhook-Batch", "").lower() == "true"
    ):
        name = _name_in_body(parsed) or header_name
        if len(data) > MAX_BATCH_SIZE:
            problem = f"A batch of {len(data)} events; at most {MAX_BATCH_SIZE} are allowed."
            return [Message(key, _clip(name), {"batch_size": len(data)}, error=problem)]
        return [_message(f"{key}:{index}", name, item) for index, item in enumerate(data)]
    return [_message(key, header_name, parsed)]


def _message(key: str, name: str, item: object) -> Message:
    if isinstance(item, dict):
        name_in_body = _name_in_body(item)
        is_envelope = name_in_body and isinstance(item.get("data"), dict)
        payload, error = item["data"] if is_envelope else item, ""
    else:
        name_in_body, payload, error = "", {"item": item}, "An event must be an object."
    try:
        payload = storable(payload)
    except RecursionError:
        payload, error = {}, f"The payload is nested deeper than {MAX_PAYLOAD_DEPTH} levels."
    return read(key, _clip(name_in_body or name), payload, error)


def read(key: str, name: str, payload: dict[str, Any], error: str = "") -> Message:
    """Return the event called ``name``, with its ``payload`` as typed values."""
    event = None
    parser = PARSERS.get(name)
    if parser is not None and not error and not is_test(payload):
        try:
            event = parser(payload)
        except MalformedPayload as malformed:
            error = str(malformed)
    return Message(key, name, payload, event, error)


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
    """Return True for a delivery that was only sent to see whether it arrives."""
    return payload.get("test") is True or payload.get("phone_number_id") == SAMPLE_NUMBER


def storable(value: Any, depth: int = 0) -> Any:
    """Return ``value`` so that every database can store it as JSON, and without credentials.

    Raise RecursionError if it is nested deeper than MAX_PAYLOAD_DEPTH.
    """
    if depth > MAX_PAYLOAD_DEPTH:
        raise RecursionError
    if isinstance(value, str):
        return _unstorable.sub("\ufffd", value)
    if isinstance(value, dict):
        return {
            storable(name): "***" if name.lower() in SECRET_NAMES else storable(item, depth + 1)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [storable(item, depth + 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and abs(value) >= 2**63:
        return str(value)
    return value


def parse_phone_number_event(payload: Mapping[str, Any]) -> PhoneNumberEvent:
    """Return the payload of ``whatsapp.phone_number.*``, in either form, as typed values.

    Raise MalformedPayload, with a message for staff, if an id is missing or not an id.
    """
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
    )


def parse_account_event(payload: Mapping[str, Any]) -> AccountEvent:
    """Return the payload of ``whatsapp.account.*`` as typed values.

    Raise MalformedPayload, with a message for staff, if the id of the account is missing or a part
    is not in Kapso's format.
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
        occurred_at=occurred_at(payload),
        restrictions=_objects(payload, "restrictions"),
        details={name: value for name, value in details.items() if value},
    )


def occurred_at(payload: Mapping[str, Any]) -> datetime | None:
    """Return when the event happened, or None if the payload does not say."""
    text = _text(payload, "occurred_at")
    try:
        return parse_moment(text) if text else None
    except (ValueError, OverflowError):
        raise MalformedPayload("occurred_at is not a date and time.") from None


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


PARSERS: dict[str, Callable[[Mapping[str, Any]], PhoneNumberEvent | AccountEvent]] = {
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
