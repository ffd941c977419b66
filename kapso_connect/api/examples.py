"""The examples of responses in the schema."""

from __future__ import annotations

from typing import Any

from .errors import INVALID_VALUES

_CUSTOMER: dict[str, Any] = {
    "id": 1,
    "name": "Ada's Bakery",
    "external_customer_id": "bakery-17",
    "email": "ada@example.com",
    "language": "en",
    "kapso_id": "5a7c1d9e-33b8-4f7a-9f0a-6d5c2f8e1b40",
    "status": "connected",
    "created_at": "2026-01-31T12:00:00Z",
    "updated_at": "2026-01-31T12:05:00Z",
}

_SETUP_LINK: dict[str, Any] = {
    "id": 7,
    "customer": 1,
    "kapso_id": "c1f4e7a2-0b5d-4c3e-8f6a-9d2b7e5a1c80",
    "reference": "c1f4e7a2",
    "connect_url": "https://crm.example.com/whatsapp/connect/Hq3vX8sTn2LmRz5yWc7KdA/",
    "url": "https://app.kapso.ai/whatsapp/setup/aBcDeF123456",
    "status": "active",
    "setup_status": "pending",
    "error_code": "",
    "is_latest": True,
    "options": {"allowed_connection_types": ["coexistence"], "language": "en"},
    "next_url": "/welcome/",
    "opened_at": None,
    "expires_at": "2026-03-02T12:00:00Z",
    "created_at": "2026-01-31T12:00:00Z",
    "created_by": "3",
}

_NUMBER: dict[str, Any] = {
    "phone_number_id": "100000000000001",
    "display_phone_number": "+1 415-555-0123",
    "verified_name": "Ada's Bakery",
    "connection_type": "coexistence",
    "status": "connected",
    "connected_at": "2026-01-31T12:05:00Z",
    "disconnected_at": None,
    "disconnect_reason": "",
}

RESPONSE_EXAMPLES: dict[str, dict[str, Any]] = {
    "CustomerSerializer": _CUSTOMER,
    "StatusSerializer": {
        "customer": 1,
        "status": "connected",
        "connection": {"id": 4, **_NUMBER},
        "more_connections": 0,
        "setup_link": {
            "id": 7,
            "status": "used",
            "setup_status": "completed",
            "opened_at": "2026-01-31T12:01:00Z",
            "expires_at": "2026-03-02T12:00:00Z",
        },
        "failure": None,
    },
    "SetupLinkSerializer": _SETUP_LINK,
    "NewSetupLinkSerializer": {**_SETUP_LINK, "token": None},
    "ConnectionSerializer": {
        "id": 4,
        "customer": 1,
        "setup_link": 7,
        **_NUMBER,
        "is_test_number": False,
        "business_account_id": "200000000000002",
        "provisioned_phone_number_id": "",
        "quality_rating": "GREEN",
        "name_status": "APPROVED",
        "health_status": "healthy",
        "health_error": "",
        "health_checked_at": "2026-01-31T12:10:00Z",
        "account_status": "active",
        "restrictions": [],
        "account_updated_at": None,
        "created_at": "2026-01-31T12:05:00Z",
        "updated_at": "2026-01-31T12:10:00Z",
    },
    "EventSerializer": {
        "id": 21,
        "kind": "connected",
        "customer": 1,
        "connection": 4,
        "setup_link": 7,
        "source": "webhook",
        "actor": None,
        "data": {},
        "occurred_at": "2026-01-31T12:05:00Z",
    },
}
"""By the name of a serializer."""

ERROR_EXAMPLES: dict[str, dict[str, Any]] = {
    code: {
        "code": code,
        "message": INVALID_VALUES,
        "fields": {path: [{"code": field_code, "message": message}]},
    }
    for code, path, field_code, message in (
        ("invalid", "name", "required", "This field is required."),
        ("invalid_filter", "kind", "unknown_filter", "Unknown filter."),
    )
}
"""By error code."""
