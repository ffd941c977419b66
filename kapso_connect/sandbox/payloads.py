"""The webhook events: their names and their bodies."""

from __future__ import annotations

from typing import Any

from .state import Customer, PhoneNumber, new_id, now, store
from .web import timestamp

CREATED_EVENT = "whatsapp.phone_number.created"
DELETED_EVENT = "whatsapp.phone_number.deleted"
OFFBOARDED_EVENT = "whatsapp.phone_number.offboarded"
DISCONNECTED_EVENT = "whatsapp.phone_number.disconnected"
RECONNECTED_EVENT = "whatsapp.phone_number.reconnected"

EVENTS_SINCE_V2 = (OFFBOARDED_EVENT, DISCONNECTED_EVENT, RECONNECTED_EVENT)
PROJECT_EVENTS = (
    "whatsapp.config.created",
    CREATED_EVENT,
    DELETED_EVENT,
    *EVENTS_SINCE_V2,
    "whatsapp.account.disabled",
    "whatsapp.account.restricted",
    "whatsapp.account.reinstated",
    "whatsapp.account.violation",
    "workflow.execution.handoff",
    "workflow.execution.failed",
    "project.event",
    "kapso_agent.run.approval_required",
    "kapso_agent.run.completed",
    "kapso_agent.run.failed",
    "kapso_agent.run.cancelled",
)
MESSAGE_RECEIVED_EVENT = "whatsapp.message.received"
CONVERSATION_CREATED_EVENT = "whatsapp.conversation.created"
NUMBER_EVENTS = (
    MESSAGE_RECEIVED_EVENT,
    "whatsapp.message.sent",
    "whatsapp.message.delivered",
    "whatsapp.message.read",
    "whatsapp.message.failed",
    CONVERSATION_CREATED_EVENT,
    "whatsapp.conversation.ended",
    "whatsapp.conversation.inactive",
    "whatsapp.contact.identity_changed",
    "whatsapp.contact.marketing_preference_changed",
    "whatsapp.meta_business_agent.handover",
)

ACCOUNT_DETAILS: dict[str, dict[str, Any]] = {
    "whatsapp.account.disabled": {"ban": {"state": "DISABLE", "date_label": None}},
    "whatsapp.account.restricted": {
        "restrictions": [
            {"type": "RESTRICTED_BIZ_INITIATED_MESSAGING", "expires_at": "2030-01-01T00:00:00Z"}
        ]
    },
    "whatsapp.account.reinstated": {"ban": {"state": "REINSTATE", "date_label": None}},
    "whatsapp.account.violation": {"violation": {"type": "SPAM", "remediation": None}},
}
META_EVENTS = {
    OFFBOARDED_EVENT: "PARTNER_REMOVED",
    DISCONNECTED_EVENT: "ACCOUNT_OFFBOARDED",
    RECONNECTED_EVENT: "ACCOUNT_RECONNECTED",
}


def is_known(event: str) -> bool:
    return event in PROJECT_EVENTS or event in NUMBER_EVENTS


def _customer(customer: Customer, legacy: bool) -> dict[str, str]:
    values = {"id": customer.id}
    if customer.external_customer_id is not None:
        values["external_customer_id" if legacy else "external_id"] = customer.external_customer_id
    return values


def build(
    event: str,
    number: PhoneNumber,
    *,
    legacy: bool = False,
    reason: str | None = None,
    initiated_by: str | None = None,
) -> dict[str, Any]:
    """Return the body of ``event`` for ``number``; ``legacy`` uses Kapso's older field names."""
    project = {"id": store.project_id}
    parties: dict[str, Any] = {"phone_number_id": number.phone_number_id, "project": project}
    if customer := store.customers.get(number.customer_id or ""):
        parties["customer"] = _customer(customer, legacy)
        if legacy:
            parties["customer_id"] = customer.id
    if event in (CREATED_EVENT, DELETED_EVENT):
        return parties
    head = {"id": new_id(), "event": event, "occurred_at": timestamp(now())}
    waba = number.business_account_id
    if event.startswith("whatsapp.account."):
        phone = {"id": number.phone_number_id, "display_phone_number": number.display_phone_number}
        return {
            **head,
            "business_account_id": waba,
            "project": project,
            "phone_numbers": [phone],
            **ACCOUNT_DETAILS.get(event, {}),
            "source": {"provider": "meta", "event": "account_update"},
        }
    values = {
        **head,
        **parties,
        "connection_type": "coexistence" if number.is_coexistence else "dedicated",
    }
    if event in META_EVENTS:
        values["source"] = {
            "provider": "meta",
            "event": META_EVENTS[event],
            "business_account_id": waba,
        }
    if event == DISCONNECTED_EVENT:
        values["disconnection"] = {"reason": reason, "initiated_by": initiated_by}
    return values
