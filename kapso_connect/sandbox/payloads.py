"""The webhook events: their names and their bodies."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

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
    "whatsapp.account.disabled": {"ban": {"state": "DISABLE"}},
    "whatsapp.account.restricted": {
        "restrictions": [
            {"type": "RESTRICTED_BIZ_INITIATED_MESSAGING", "expires_at": "2030-01-01T00:00:00Z"}
        ]
    },
    "whatsapp.account.reinstated": {"ban": {"state": "REINSTATE"}},
    "whatsapp.account.violation": {"violation": {"type": "SPAM"}},
}
# Meta's names for the events.
ACCOUNT_SOURCES = {
    "whatsapp.account.disabled": "DISABLED_UPDATE",
    "whatsapp.account.restricted": "ACCOUNT_RESTRICTION",
    "whatsapp.account.reinstated": "DISABLED_UPDATE",
    "whatsapp.account.violation": "ACCOUNT_VIOLATION",
}
DISCONNECTION_SOURCES = ("PARTNER_REMOVED", "PARTNER_APP_UNINSTALLED")
LIFECYCLE_SOURCES = {
    OFFBOARDED_EVENT: "ACCOUNT_OFFBOARDED",
    DISCONNECTED_EVENT: DISCONNECTION_SOURCES[0],
    RECONNECTED_EVENT: "ACCOUNT_RECONNECTED",
}


def is_known(event: str) -> bool:
    return event in PROJECT_EVENTS or event in NUMBER_EVENTS


def _customer(customer: Customer, legacy: bool) -> dict[str, str]:
    values = {"id": customer.id}
    if customer.external_customer_id is not None:
        values["external_customer_id" if legacy else "external_id"] = customer.external_customer_id
    return values


def _workflow_event(event: str) -> dict[str, Any]:
    return {
        "event": event,
        "occurred_at": timestamp(now()),
        "project_id": store.project_id,
        "workflow_id": new_id(),
    }


def _project_event(event: str) -> dict[str, Any]:
    return {
        "id": new_id(),
        "event": event,
        "name": "sample",
        "occurred_at": timestamp(now()),
        "project_id": store.project_id,
        "properties": {},
    }


def _agent_event(event: str) -> dict[str, Any]:
    run = {"id": new_id(), "status": event.rpartition(".")[2]}
    return {"id": new_id(), "event": event, "created_at": timestamp(now()), "data": run}


SAMPLES_BY_PREFIX = {
    "workflow.execution.": _workflow_event,
    "project.event": _project_event,
    "kapso_agent.run.": _agent_event,
}


def build(
    event: str,
    number: PhoneNumber,
    *,
    legacy: bool = False,
    reason: str | None = None,
    initiated_by: str | None = None,
    source_event: str | None = None,
) -> dict[str, Any]:
    """Return the body of ``event`` for ``number``; ``legacy`` uses Kapso's older field names.

    ``reason``, ``initiated_by`` and ``source_event`` are those of a disconnection.
    """
    if event in ACCOUNT_SOURCES:
        return _account_event(event, number)
    for prefix, sample in SAMPLES_BY_PREFIX.items():
        if event.startswith(prefix):
            return sample(event)
    parties: dict[str, Any] = {
        "phone_number_id": number.phone_number_id,
        "project": {"id": store.project_id},
    }
    if customer := store.customers.get(number.customer_id or ""):
        parties["customer"] = _customer(customer, legacy)
        if legacy:
            parties["customer_id"] = customer.id
    if event not in LIFECYCLE_SOURCES:
        return parties
    source = {"provider": "meta", "event": source_event or LIFECYCLE_SOURCES[event]}
    if number.business_account_id:
        source["business_account_id"] = number.business_account_id
    values = {
        "id": new_id(),
        "event": event,
        "occurred_at": timestamp(now()),
        **parties,
        "connection_type": number.connection_type,
        "source": source,
    }
    if event == DISCONNECTED_EVENT:
        values["disconnection"] = {"reason": reason, "initiated_by": initiated_by}
    return values


def _account_event(event: str, number: PhoneNumber) -> dict[str, Any]:
    """Return the body of an account event: about all numbers of the account of ``number``."""
    account_id = number.business_account_id
    values: dict[str, Any] = {
        "id": f"wae_{uuid4().hex}",
        "event": event,
        "occurred_at": timestamp(now()),
        "project": {"id": store.project_id},
        "phone_numbers": [
            {"id": row.phone_number_id, "display_phone_number": row.display_phone_number}
            for row in store.numbers_of_account(account_id or "") or [number]
        ],
        **ACCOUNT_DETAILS[event],
        "source": {"provider": "meta", "event": ACCOUNT_SOURCES[event]},
    }
    if account_id:
        values["business_account_id"] = account_id
    return values
