"""What each operation of the API is, in words: for its pages in a browser and its schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import KAPSO, OTHERS, UNEXPECTED

Codes = Mapping[int, tuple[str, ...]]
"""By status, the codes of errors."""


@dataclass(frozen=True)
class Operation:
    """``title`` heads its page. ``codes`` are those of its errors, besides COMMON. ``example`` is a
    body that it takes."""

    title: str
    description: str
    codes: Codes = field(default_factory=dict)
    example: Mapping[str, Any] | None = None


MESSAGES: dict[str, str] = {
    "invalid": "Some values are not right; fields says which.",
    "invalid_cursor": "Some values are not right; fields says which.",
    "invalid_idempotency_key": "Some values are not right; fields says which.",
    "invalid_filter": "Some values are not right; fields says which.",
    "parse_error": "The body is not valid JSON.",
    "not_authenticated": "Authentication credentials were not provided.",
    "authentication_failed": "Incorrect authentication credentials.",
    "token_not_permitted": "You may not be given the link's token.",
    "not_acceptable": "Could not satisfy the request Accept header.",
    "external_customer_id_taken": "Another customer has this external id.",
    "idempotency_key_in_use": "A request with this key is under way. Send it again in a moment.",
    "idempotency_key_reused": "This key was used with another body. Take a new one.",
    "setup_link_used": "This link has been used; it cannot end.",
    "changed_meanwhile": "Kapso cannot tell yet.",
    "unsupported_media_type": 'Unsupported media type "text/plain" in request.',
    "throttled": "Request was throttled. Expected available in 30 seconds.",
    "openapi_not_installed": "This site has no drf-spectacular, which writes the schema.",
    "kapso_outcome_unknown": "Kapso broke off, and may have done it or not.",
    **{code: message for _status, code, message in (*OTHERS.values(), *KAPSO.values(), UNEXPECTED)},
}
"""By code, what an error says; some say it more precisely."""


def together(*parts: Codes) -> Codes:
    found: dict[int, tuple[str, ...]] = {}
    for part in parts:
        for status, codes in part.items():
            found[status] = (*found.get(status, ()), *codes)
    return {status: tuple(dict.fromkeys(found[status])) for status in sorted(found)}


NO_ENTRY = ("not_authenticated", "authentication_failed")
COMMON: Codes = {
    400: ("bad_request",),
    401: NO_ENTRY,
    403: ("permission_denied", *NO_ENTRY),
    406: ("not_acceptable",),
    429: ("throttled",),
    503: ("unavailable",),
}
"""Which of 401 and 403 it is, the site's first authentication class decides."""

_rows: Codes = {400: ("invalid_filter",)}
_row: Codes = {404: ("not_found",)}
_body: Codes = {
    400: ("parse_error", "invalid"),
    413: ("too_large",),
    415: ("unsupported_media_type",),
}
_key: Codes = {
    400: ("invalid_idempotency_key",),
    409: ("idempotency_key_in_use",),
    422: ("idempotency_key_reused",),
}
_kapso: Codes = {
    409: ("kapso_conflict", "kapso_not_found"),
    422: ("kapso_refused",),
    502: ("kapso_credentials", "kapso_plan", "kapso_unexpected"),
    503: ("kapso_unavailable", "kapso_rate_limited", "kapso_outcome_unknown", "not_configured"),
}

CUSTOMER = {
    "name": "Ada's Bakery",
    "external_customer_id": "bakery-17",
    "email": "ada@example.com",
    "language": "en",
}

ROOT = {"list": Operation("WhatsApp", "Where everything is.")}

CUSTOMERS = {
    "list": Operation(
        "Customers",
        "Customers and where each of them stands, the newest first.",
        together(_rows, _row),
    ),
    "create": Operation(
        "New customer",
        "A new customer. Send an Idempotency-Key, and the same request sent again makes no second "
        "one.",
        together(_body, _key, {409: ("external_customer_id_taken",)}),
        CUSTOMER,
    ),
    "retrieve": Operation("Customer", "One customer.", _row),
    "update": Operation(
        "Change a customer",
        "Change a customer; what is left out stays as it is.",
        together(_row, _body, {409: ("external_customer_id_taken",)}),
        CUSTOMER,
    ),
    "partial_update": Operation(
        "Change a part of a customer",
        "Change some values of a customer.",
        together(_row, _body, {409: ("external_customer_id_taken",)}),
        {"email": "ada@example.com"},
    ),
    "status": Operation(
        "Where the customer stands",
        "How far the customer has come: invited, opened, waiting, connected, or why not. Cheap to "
        "ask for again and again: send the ETag of the last answer as If-None-Match, and while "
        "nothing has changed the answer is 304 without a body.",
        _row,
    ),
}

SETUP_LINKS = {
    "list": Operation(
        "Setup links", "Invitations to connect a number, the newest first.", together(_rows, _row)
    ),
    "create": Operation(
        "New setup link",
        "A new setup link for a customer; the customer's older one ends. Give the customer "
        "connect_url, which goes on working when the link is renewed. Send an Idempotency-Key, and "
        "the same request sent again makes no second link. Kapso is asked.",
        together(_row, _body, _key, _kapso, {403: ("token_not_permitted",)}),
        {
            "customer": 1,
            "options": {"allowed_connection_types": ["coexistence"], "language": "en"},
            "next_url": "/welcome/",
        },
    ),
    "retrieve": Operation("Setup link", "One setup link.", _row),
    "revoke": Operation(
        "Revoke a setup link",
        "End a setup link, and the customer's address with it. One that was revoked stays so. "
        "Kapso is asked.",
        together(_row, _body, _kapso, {409: ("setup_link_used",)}),
        {},
    ),
}

CONNECTIONS = {
    "list": Operation(
        "Connections",
        "Numbers that are connected or were once, the newest first.",
        together(_rows, _row),
    ),
    "retrieve": Operation("Connection", "One number.", _row),
    "refresh": Operation(
        "Refresh a connection",
        "Ask Kapso about the number and how it is, and answer what is known then.",
        together(_row, _body, _kapso, {409: ("changed_meanwhile",)}),
        {},
    ),
    "disconnect": Operation(
        "Disconnect a number",
        "Disconnect the number and remove it from Kapso; the customer's setup links end, too. One "
        "that is disconnected stays so.",
        together(_row, _body, _kapso, {409: ("changed_meanwhile",)}),
        {},
    ),
}

EVENTS = {
    "list": Operation(
        "Timeline",
        "What happened to customers, links and numbers, the newest first. Follow next: what "
        "arrives meanwhile shifts no page.",
        together(_rows, {400: ("invalid_cursor",)}),
    ),
}

SCHEMA = {
    "describe": Operation(
        "Schema",
        "This description: OpenAPI 3.1, as JSON or YAML.",
        together(_row, {501: ("openapi_not_installed",)}),
    ),
}
