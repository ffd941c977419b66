"""What the schema tells of single values, and what the API answers, for example."""

from __future__ import annotations

from typing import Any

FIELDS: dict[str, str] = {
    "id": "Of this API.",
    "customer": "The id of a customer.",
    "connection": "The id of a connection.",
    "setup_link": "The id of a setup link.",
    "created_at": "When it was made.",
    "updated_at": "When it last changed.",
    # Customers
    "name": "What the customer is called.",
    "email": "Where the customer is written to.",
    "standing": "How far the customer has come.",
    "StatusSerializer.connection": "The number that is connected, or the last one that was.",
    "StatusSerializer.setup_link": "The newest setup link.",
    "more_connections": "How many further numbers are connected.",
    "failure": "Why connecting failed, where the customer stands at that.",
    "FailureSerializer.code": "Kapso's code for it; unknown for one that is not known here.",
    "cause": "Why it happened, for the customer.",
    "advice": "What is best done now, for the customer.",
    "action": "What the customer's best next step is.",
    # Setup links
    "kapso_id": "Kapso's id.",
    "SetupLinkSerializer.status": "Whether it works.",
    "StatusLinkSerializer.status": "Whether it works.",
    "setup_status": "How far the customer came with it.",
    "error_code": "Kapso's code for why connecting last failed; empty where it did not.",
    "is_latest": "True for the customer's newest link.",
    "options": "What Kapso was asked for.",
    "SetupLinkRequestSerializer.options": "What Kapso is asked for.",
    "next_url": "The page of this site that the success page leads on to.",
    "opened_at": "When the customer first followed it.",
    "expires_at": "Until when it works.",
    "allowed_connection_types": "What the customer can choose from; a single one is chosen.",
    "language": "Of the hosted page.",
    "theme_config": "The colours of the hosted page.",
    "provision_phone_number": "Whether Kapso provides a number.",
    "phone_number_country_isos": "In which countries Kapso provides one; US where absent.",
    "phone_number_area_code": "Three digits, with which area code; in the United States only.",
    "meta_billing_mode": "Who pays Meta.",
    # Connections
    "ConnectionSerializer.setup_link": "The id of the setup link that it was connected by.",
    "phone_number_id": "Meta's id of the number.",
    "display_phone_number": "The number as people read it.",
    "business_account_id": "The WhatsApp Business Account that holds the number.",
    "provisioned_phone_number_id": "Kapso's id of a number that it provided.",
    "verified_name": "The name that WhatsApp shows.",
    "connection_type": "How it is connected; empty where Kapso did not say.",
    "status": "Whether it is connected.",
    "connected_at": "When it was last connected.",
    "disconnected_at": "When it was last disconnected.",
    "disconnect_reason": "Why it was last disconnected.",
    "name_status": "Whether Meta approved the name that people see.",
    "health_status": "What Kapso said when it last looked; empty before that.",
    "health_error": "What is wrong with it.",
    "health_checked_at": "When Kapso last looked.",
    "account_status": "What Meta's decisions leave of its account.",
    "restrictions": "Meta's, as Kapso reports them.",
    "account_updated_at": "When Meta last decided.",
    # Timeline
    "kind": "What happened.",
    "source": "Who told it.",
    "data": "Details, other ones for each kind.",
    "occurred_at": "When it happened.",
    # Errors
    "ErrorFieldSerializer.code": "Stays as it is from release to release.",
    "message": "For people; do not compare with it.",
    # Parameters
    "page": "Which page, from 1.",
    "page_size": "How many on a page.",
    "cursor": "Where the page begins; taken from next or previous.",
    "external_customer_id": "This site's own id for the customer, exactly.",
}
"""By name, where it is no serializer's alone; what has a ``help_text`` is not here."""

CUSTOMER: dict[str, Any] = {
    "id": 1,
    "name": "Ada's Bakery",
    "external_customer_id": "bakery-17",
    "email": "ada@example.com",
    "language": "en",
    "kapso_id": "5a7c1d9e-33b8-4f7a-9f0a-6d5c2f8e1b40",
    "standing": "connected",
    "created_at": "2026-01-31T12:00:00Z",
    "updated_at": "2026-01-31T12:05:00Z",
}

SETUP_LINK: dict[str, Any] = {
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

NUMBER: dict[str, Any] = {
    "phone_number_id": "100000000000001",
    "display_phone_number": "+1 415-555-0123",
    "verified_name": "Ada's Bakery",
    "connection_type": "coexistence",
    "status": "connected",
    "connected_at": "2026-01-31T12:05:00Z",
    "disconnected_at": None,
    "disconnect_reason": "",
}

EXAMPLES: dict[str, dict[str, Any]] = {
    "CustomerSerializer": CUSTOMER,
    "StatusSerializer": {
        "customer": 1,
        "standing": "connected",
        "connection": {"id": 4, **NUMBER},
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
    "SetupLinkSerializer": SETUP_LINK,
    "NewSetupLinkSerializer": {**SETUP_LINK, "token": None},
    "ConnectionSerializer": {
        "id": 4,
        "customer": 1,
        "setup_link": 7,
        **NUMBER,
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

WRONG: dict[str, dict[str, Any]] = {
    code: {
        "code": code,
        "message": "Some values are not right; fields says which.",
        "fields": {where: [{"code": problem, "message": message}]},
    }
    for code, where, problem, message in (
        ("invalid", "name", "required", "This field is required."),
        ("invalid_filter", "kind", "unknown_filter", "There is no such filter."),
    )
}
"""By code, what is answered where values are wrong."""
