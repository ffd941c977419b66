"""The examples of bodies, in the schema and in the forms of the browsable pages."""

from __future__ import annotations

from typing import Any

from .errors import FieldErrors

Example = dict[str, Any]

NEW_CUSTOMER: Example = {
    "name": "Ada's Bakery",
    "external_customer_id": "bakery-17",
    "email": "ada@example.com",
    "language": "en",
}
CUSTOMER: Example = {
    "id": 1,
    **NEW_CUSTOMER,
    "kapso_id": "5a7c1d9e-33b8-4f7a-9f0a-6d5c2f8e1b40",
    "status": "connected",
    "created_at": "2026-01-31T12:00:00Z",
    "updated_at": "2026-01-31T12:05:00Z",
}

NEW_SETUP_LINK: Example = {
    "customer": 1,
    "options": {"allowed_connection_types": ["coexistence"], "language": "en"},
    "next_url": "/welcome/",
}
SETUP_LINK: Example = {
    "id": 7,
    **NEW_SETUP_LINK,
    "kapso_id": "c1f4e7a2-0b5d-4c3e-8f6a-9d2b7e5a1c80",
    "reference": "c1f4e7a2",
    "connect_url": "https://crm.example.com/whatsapp/connect/Hq3vX8sTn2LmRz5yWc7KdA/",
    "url": "https://app.kapso.ai/whatsapp/setup/aBcDeF123456",
    "status": "active",
    "setup_status": "pending",
    "error_code": None,
    "warnings": [],
    "is_latest": True,
    "opened_at": None,
    "expires_at": "2026-03-02T12:00:00Z",
    "created_at": "2026-01-31T12:00:00Z",
    "created_by": "3",
}
CREATED_SETUP_LINK: Example = {**SETUP_LINK, "token": None}

SENT_EMAIL: Example = {
    "customer": 1,
    "setup_link": 7,
    "to": "ada@example.com",
    "sent_at": "2026-01-31T12:00:05Z",
}

NEW_BATCH: Example = {
    "purpose": "invite",
    "customers": [1, 2, 3],
    "options": {"allowed_connection_types": ["coexistence"], "language": "en"},
    "next_url": "/welcome/",
    "send_email": True,
    "leave_out_connected": True,
}
BATCH: Example = {
    "id": 5,
    "purpose": "invite",
    "state": "running",
    "stop_reason": None,
    "options": NEW_BATCH["options"],
    "next_url": "/welcome/",
    "send_email": True,
    "progress": {
        "total": 3,
        "done": 1,
        "failed": 0,
        "left": 2,
        "emails_sent": 1,
        "emails_failed": 0,
        "emails_unknown": 0,
        "emails_waiting": 0,
        "no_address": 0,
        "left_out": 0,
        "next_attempt_at": "2026-01-31T12:00:00Z",
    },
    "created_at": "2026-01-31T12:00:00Z",
    "started_at": "2026-01-31T12:00:00Z",
    "created_by": "3",
}
INVITATION: Example = {
    "customer": 1,
    "setup_link": 7,
    "status": "done",
    "error": None,
    "email_status": "sent",
    "email_error": None,
}

_NUMBER: Example = {
    "id": 4,
    "phone_number_id": "100000000000001",
    "display_phone_number": "+1 415-555-0123",
    "verified_name": "Ada's Bakery",
    "connection_type": "coexistence",
    "status": "connected",
    "connected_at": "2026-01-31T12:05:00Z",
    "disconnected_at": None,
    "disconnect_reason": None,
}
CONNECTION: Example = {
    **_NUMBER,
    "customer": 1,
    "setup_link": 7,
    "is_test_number": False,
    "business_account_id": "200000000000002",
    "kapso_phone_number_id": None,
    "quality_rating": "GREEN",
    "name_status": "APPROVED",
    "health_status": "healthy",
    "health_error": None,
    "health_problems": [],
    "health_checked_at": "2026-01-31T12:10:00Z",
    "health_retry_after": None,
    "funding_status": None,
    "funding_checked_at": None,
    "account_status": "active",
    "restrictions": [],
    "account_updated_at": None,
    "created_at": "2026-01-31T12:05:00Z",
    "updated_at": "2026-01-31T12:10:00Z",
}

STATUS: Example = {
    "customer": 1,
    "status": "connected",
    "connection": _NUMBER,
    "more_connections": 0,
    "setup_link": {
        "id": 7,
        "status": "used",
        "setup_status": "completed",
        "opened_at": "2026-01-31T12:01:00Z",
        "expires_at": "2026-03-02T12:00:00Z",
    },
    "failure": None,
}

EVENT: Example = {
    "id": 21,
    "kind": "connected",
    "customer": 1,
    "connection": 4,
    "setup_link": 7,
    "source": "webhook",
    "actor": None,
    "data": {},
    "occurred_at": "2026-01-31T12:05:00Z",
}

# The ``fields`` of errors

UNKNOWN_FIELD: FieldErrors = {"note": [{"code": "unknown_field", "message": "Unknown field."}]}
NAME_MISSING: FieldErrors = {"name": [{"code": "required", "message": "This field is required."}]}
NAME_BLANK: FieldErrors = {"name": [{"code": "blank", "message": "This field may not be blank."}]}
CUSTOMER_UNKNOWN: FieldErrors = {
    "customer": [{"code": "does_not_exist", "message": "There is no such customer."}]
}
CUSTOMERS_UNKNOWN: FieldErrors = {"customers.3": CUSTOMER_UNKNOWN["customer"]}
PAGE_TOO_LARGE: FieldErrors = {
    "page_size": [
        {"code": "max_value", "message": "Ensure this value is less than or equal to 100."}
    ]
}
