"""The operations of the API in words, for its browsable pages and its schema: titles,
descriptions, error codes and examples of request bodies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ERRORS

Codes = Mapping[int, tuple[str, ...]]
"""Error codes by status."""


@dataclass(frozen=True)
class Operation:
    """One method of one endpoint. ``codes`` are the error codes that it has besides
    ``COMMON_CODES``; ``example`` is a request body."""

    title: str
    description: str
    codes: Codes = field(default_factory=dict)
    example: Mapping[str, Any] | None = None


MESSAGES: dict[str, str] = {
    # Of Django REST framework
    "not_authenticated": "Authentication credentials were not provided.",
    "authentication_failed": "Incorrect authentication credentials.",
    "not_acceptable": "Could not satisfy the request Accept header.",
    "unsupported_media_type": 'Unsupported media type "text/plain" in request.',
    "throttled": "Request was throttled. Expected available in 30 seconds.",
    **{code: message for code, (_status, message) in ERRORS.items()},
}
"""By code, the message of each error in the schema; some responses are more precise."""


def merge_codes(*parts: Codes) -> Codes:
    merged: dict[int, tuple[str, ...]] = {}
    for part in parts:
        for status, codes in part.items():
            merged[status] = (*merged.get(status, ()), *codes)
    return {status: tuple(dict.fromkeys(merged[status])) for status in sorted(merged)}


# The site's first authentication class decides whether it is 401 or 403.
_AUTHENTICATION = ("not_authenticated", "authentication_failed")
COMMON_CODES: Codes = {
    400: ("bad_request",),
    401: _AUTHENTICATION,
    403: ("permission_denied", *_AUTHENTICATION),
    406: ("not_acceptable",),
    429: ("throttled",),
    503: ("unavailable",),
}

_of_lists: Codes = {400: ("invalid_filter",)}
_of_rows: Codes = {404: ("not_found",)}
_of_bodies: Codes = {
    400: ("parse_error", "invalid"),
    413: ("too_large",),
    415: ("unsupported_media_type",),
}
_of_idempotency: Codes = {
    400: ("invalid_idempotency_key",),
    409: ("idempotency_key_in_use",),
    422: ("idempotency_key_reused",),
}
_of_kapso: Codes = {
    409: ("kapso_conflict", "kapso_not_found"),
    422: ("kapso_refused",),
    502: ("kapso_credentials", "kapso_plan", "kapso_unexpected"),
    503: ("kapso_unavailable", "kapso_rate_limited", "kapso_outcome_unknown", "not_configured"),
}

_customer = {
    "name": "Ada's Bakery",
    "external_customer_id": "bakery-17",
    "email": "ada@example.com",
    "language": "en",
}

ROOT_OPERATIONS = {"list": Operation("WhatsApp", "The URLs of this API.")}

CUSTOMER_OPERATIONS = {
    "list": Operation(
        "Customers",
        "Lists the customers and their onboarding status, newest first.",
        merge_codes(_of_lists, _of_rows),
    ),
    "create": Operation(
        "New customer",
        "Creates a customer. With an Idempotency-Key, the request can be repeated without "
        "creating a second one.",
        merge_codes(_of_bodies, _of_idempotency, {409: ("external_customer_id_taken",)}),
        _customer,
    ),
    "retrieve": Operation("Customer", "Returns one customer.", _of_rows),
    "update": Operation(
        "Change a customer",
        "Changes a customer. Optional fields that are left out stay as they are.",
        merge_codes(_of_rows, _of_bodies, {409: ("external_customer_id_taken",)}),
        _customer,
    ),
    "partial_update": Operation(
        "Change some fields of a customer",
        "Changes the given fields of a customer.",
        merge_codes(_of_rows, _of_bodies, {409: ("external_customer_id_taken",)}),
        {"email": "ada@example.com"},
    ),
    "status": Operation(
        "Onboarding status",
        "Returns the customer's onboarding status, and why connecting failed if it did. It is "
        "cheap to poll: send the ETag of the last response as If-None-Match, and the response is "
        "304 without a body while nothing has changed.",
        _of_rows,
    ),
}

SETUP_LINK_OPERATIONS = {
    "list": Operation(
        "Setup links",
        "Lists the invitations to connect a number, newest first.",
        merge_codes(_of_lists, _of_rows),
    ),
    "create": Operation(
        "New setup link",
        "Creates a setup link at Kapso for a customer and ends the customer's older one. Give the "
        "customer connect_url, which keeps working when the link is renewed. With an "
        "Idempotency-Key, the request can be repeated without creating a second link.",
        merge_codes(
            _of_rows, _of_bodies, _of_idempotency, _of_kapso, {403: ("token_not_permitted",)}
        ),
        {
            "customer": 1,
            "options": {"allowed_connection_types": ["coexistence"], "language": "en"},
            "next_url": "/welcome/",
        },
    ),
    "retrieve": Operation("Setup link", "Returns one setup link.", _of_rows),
    "revoke": Operation(
        "Revoke a setup link",
        "Revokes a setup link at Kapso, and the customer's connect_url with it. Revoking it again "
        "changes nothing.",
        merge_codes(_of_rows, _of_bodies, _of_kapso, {409: ("setup_link_used",)}),
        {},
    ),
}

CONNECTION_OPERATIONS = {
    "list": Operation(
        "Connections",
        "Lists the numbers that are or were connected, newest first.",
        merge_codes(_of_lists, _of_rows),
    ),
    "retrieve": Operation("Connection", "Returns one number.", _of_rows),
    "refresh": Operation(
        "Refresh a connection",
        "Gets the number and its health from Kapso, and returns the result.",
        merge_codes(_of_rows, _of_bodies, _of_kapso, {409: ("changed_meanwhile",)}),
        {},
    ),
    "disconnect": Operation(
        "Disconnect a number",
        "Disconnects the number, removes it from Kapso and ends the customer's setup links. "
        "Disconnecting it again changes nothing.",
        merge_codes(_of_rows, _of_bodies, _of_kapso, {409: ("changed_meanwhile",)}),
        {},
    ),
}

EVENT_OPERATIONS = {
    "list": Operation(
        "Timeline",
        "Lists what happened to customers, links and numbers, newest first. Follow next: pages do "
        "not shift when new events arrive.",
        merge_codes(_of_lists, {400: ("invalid_cursor",)}),
    ),
}

SCHEMA_OPERATIONS = {
    "describe": Operation(
        "Schema",
        "Returns the OpenAPI 3.1 schema of this API, as JSON or YAML.",
        merge_codes(_of_rows, {501: ("openapi_not_installed",)}),
    ),
}
