"""What Kapso sends, sent once or is said to send, and what each of it leads to.

Read the table from left to right: the body, the event in the header, then the status of each event
that is stored, and what has changed. ``NEW`` is a number that this site does not know, ``OLD`` one
that is connected. "pending" is what waits for Kapso's API.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone as django_timezone

from kapso_connect.models import Connection, WebhookEvent
from kapso_connect.sandbox.signing import sign
from kapso_connect.webhooks.payloads import UNNAMED_EVENT

from ..factories import SECRET, WEBHOOK, make_connection, make_customer

pytestmark = pytest.mark.django_db

NEW, NEW_TOO, OLD, WABA = "100000000000001", "100000000000002", "200000000000001", "700000000000001"
OURS = {"id": "0b3a9c52-6c2d-4d0e-9d41-5f1f0a6f2c11", "external_id": "crm-42"}
PROJECT = {"id": "9d0e5f1f-0a6f-4c11-8b3a-9c526c2d4d41"}

NUMBER = "whatsapp.phone_number."
CREATED, DELETED = NUMBER + "created", NUMBER + "deleted"
OFFBOARDED, DISCONNECTED = NUMBER + "offboarded", NUMBER + "disconnected"
RECONNECTED = NUMBER + "reconnected"
RESTRICTED, DISABLED = "whatsapp.account.restricted", "whatsapp.account.disabled"
VIOLATION, REINSTATED = "whatsapp.account.violation", "whatsapp.account.reinstated"
RECEIVED = "whatsapp.message.received"

new = {"phone_number_id": NEW, "project": PROJECT, "customer": OURS}
new_too = {**new, "phone_number_id": NEW_TOO}
old = {**new, "phone_number_id": OLD}
sample = {"phone_number_id": "123456789012345", "project": PROJECT, "customer": {"id": "cus_1"}}
message = {"message": {"id": "wamid.1", "type": "text"}, "phone_number_id": OLD}
agent_run = {"id": "run_1", "created_at": "2026-09-27T10:00:00Z", "data": {"phone_number_id": OLD}}
meta_body = {"object": "whatsapp_business_account", "entry": [{"id": WABA, "changes": []}]}
deep: Any = "x"
for _level in range(30):
    deep = [deep]


def without(payload: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in payload.items() if name not in names}


def lifecycle(event: str, at: str = "now", **more: Any) -> dict[str, Any]:
    source = {"provider": "meta", "business_account_id": WABA}
    head = {"id": "evt_1", "event": event, "occurred_at": at, "connection_type": "coexistence"}
    return {**head, **old, "source": source, **more}


def account(event: str, waba: str = WABA, number: str | None = OLD, **more: Any) -> dict[str, Any]:
    head = {"id": "wae_1", "event": event, "occurred_at": "now", "business_account_id": waba}
    numbers = [{"id": number, "display_phone_number": "+1 415"}] if number else []
    return {**head, "project": PROJECT, "phone_numbers": numbers, **more}


withdrawn = lifecycle(DISCONNECTED, disconnection={"reason": "x", "initiated_by": "user"})
restriction = {"restrictions": [{"type": "RESTRICTED_BIZ_INITIATED_MESSAGING"}]}


@dataclass
class Form:
    """A delivery, and what it leads to. ``stored`` are the statuses of the stored events in order,
    ``name`` is that of the events, ``changes`` are those from ``UNCHANGED``."""

    body: Any
    header: str | None
    stored: str
    changes: dict[str, str] = field(default_factory=dict)
    name: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    signed: Callable[[bytes], dict[str, str]] = lambda body: {
        "X-Webhook-Signature": sign(body, SECRET)
    }


def signed_as(name: str, form: str = "{}", secret: str = SECRET) -> Callable[..., dict[str, str]]:
    return lambda body: {name: form.format(sign(body, secret))}


UNCHANGED = {NEW: "", NEW_TOO: "", OLD: "connected", "account": "active"}
CONNECTED, BOTH = {NEW: "connected"}, {NEW: "connected", NEW_TOO: "connected"}
GONE = {OLD: "not connected"}
IN_BATCH = {"X-Webhook-Batch": "true", "X-Batch-Size": "2"}
KAPSO, X_WEBHOOK = "X-Kapso-Signature", "X-Webhook-Signature"

FORMS = {
    # The name is in the header only: Kapso's form of today for ``created`` and ``deleted``
    "flat": Form(new, CREATED, "processed", CONNECTED),
    "flat, id only": Form({**new, "customer": {"id": OURS["id"]}}, CREATED, "processed", CONNECTED),
    "flat, more fields": Form({**new, "plan": {"a": [1]}, "x": 1}, CREATED, "processed", CONNECTED),
    "flat, older external id": Form(
        {**new, "customer": {"id": "other", "external_customer_id": "crm-42"}},
        *(CREATED, "processed", CONNECTED),
    ),
    "flat, unknown customer": Form(
        {**new, "customer": {"id": "unknown"}}, CREATED, "processed", CONNECTED
    ),
    "flat, no customer": Form(without(new, "customer"), CREATED, "ignored"),
    "flat, customer null": Form({**new, "customer": None}, CREATED, "ignored"),
    "flat, blanks in the header": Form(new, f" {CREATED} ", "processed", CONNECTED, CREATED),
    "flat, a batch by a false header": Form(new, CREATED, "processed", CONNECTED, headers=IN_BATCH),
    "flat, byte order mark": Form(
        b"\xef\xbb\xbf" + json.dumps(new).encode(), CREATED, "processed", CONNECTED
    ),
    "flat, no key": Form(new, CREATED, "processed", CONNECTED, headers={"X-Idempotency-Key": ""}),
    "flat, connected already": Form(old, CREATED, "processed"),
    "flat, number of another type": Form({**new, "phone_number_id": 5}, CREATED, "failed"),
    "flat, no number": Form(without(new, "phone_number_id"), CREATED, "failed"),
    "sample of the documentation": Form(sample, CREATED, "ignored"),
    # The name is in the body, too
    "flat, event": Form({"event": CREATED, **new}, CREATED, "processed", CONNECTED),
    "flat, type": Form({"type": CREATED, **new}, None, "processed", CONNECTED, CREATED),
    "flat, another name in the header": Form(
        {"event": CREATED, **new}, DELETED, "processed", CONNECTED, CREATED
    ),
    # Version 1
    "v1, customer at the top": Form(
        {**without(new, "customer"), "customer_id": OURS["id"]}, CREATED, "processed", CONNECTED
    ),
    "v1, number in the config": Form(
        {"customer_id": OURS["id"], "whatsapp_config": {"phone_number_id": NEW, "id": "cfg"}},
        *(CREATED, "processed", CONNECTED),
        headers={"X-Webhook-Payload-Version": "v1"},
    ),
    "v1, all in the config": Form(
        {"whatsapp_config": {"phone_number_id": NEW, "customer_id": OURS["id"], "source": "web"}},
        *(CREATED, "processed", CONNECTED),
    ),
    "v1, config is an id": Form(
        {**new, "whatsapp_config": "cfg_1"}, CREATED, "processed", CONNECTED
    ),
    "v1, number in both": Form(
        {**new, "whatsapp_config": {"phone_number_id": NEW_TOO}}, CREATED, "processed", CONNECTED
    ),
    # Envelopes
    "envelope": Form({"event": CREATED, "data": new}, None, "processed", CONNECTED, CREATED),
    "envelope, type": Form({"type": CREATED, "data": new}, None, "processed", CONNECTED, CREATED),
    "envelope, header": Form({"event": CREATED, "data": new}, CREATED, "processed", CONNECTED),
    "envelope, more fields": Form(
        {"type": CREATED, "timestamp": "now", "api": 2, "data": {**new, "phone_number": "+1"}},
        *(CREATED, "processed", CONNECTED),
    ),
    "envelope, name in the header": Form({"data": new}, CREATED, "processed", CONNECTED),
    "envelope with an id, name in the header": Form(
        {"id": "evt", "created_at": "now", "data": new}, CREATED, "processed", CONNECTED
    ),
    "envelope, no name": Form({"data": new}, None, "ignored", name=UNNAMED_EVENT),
    "envelope, a test": Form({"event": CREATED, "test": True, "data": new}, None, "ignored"),
    "envelope, a test, name in the header": Form({"test": True, "data": new}, CREATED, "ignored"),
    # Batches
    "batch": Form(
        {"type": CREATED, "batch": True, "data": [new, new_too], "batch_info": {"size": 2}},
        *(CREATED, "processed processed", BOTH),
        headers=IN_BATCH,
    ),
    "batch by the body": Form(
        {"type": CREATED, "batch": True, "data": [new, new_too]},
        *(None, "processed processed", BOTH, CREATED),
    ),
    "batch by the header": Form(
        {"data": [new, new_too], "more": 1},
        *(CREATED, "processed processed", BOTH),
        headers={"X-Webhook-Batch": "True"},
    ),
    "batch without a mark": Form(
        {"type": CREATED, "data": [new, new_too]}, None, "processed processed", BOTH, CREATED
    ),
    "batch, data alone": Form({"data": [new, new_too]}, CREATED, "processed processed", BOTH),
    "batch of one": Form(
        {"type": CREATED, "batch": True, "data": [new]}, CREATED, "processed", CONNECTED
    ),
    "batch of envelopes": Form(
        {"batch": True, "data": [{"event": CREATED, "data": n} for n in (new, new_too)]},
        *(None, "processed processed", BOTH, CREATED),
    ),
    "batch of envelopes without names": Form(
        {"type": CREATED, "batch": True, "data": [{"data": new}, {"data": new_too}]},
        *(CREATED, "processed processed", BOTH),
    ),
    "batch of nothing": Form({"type": CREATED, "batch": True, "data": []}, CREATED, ""),
    "batch of nothing without a mark": Form({"data": []}, CREATED, "failed"),
    "batch that is too large": Form(
        {"batch": True, "data": [{}] * 1001}, None, "failed", name=UNNAMED_EVENT
    ),
    "batch with something else": Form(
        {"type": CREATED, "batch": True, "data": [new, "x", new_too]},
        *(CREATED, "processed failed processed", BOTH),
    ),
    # Signatures
    "signature with its algorithm": Form(
        new, CREATED, "processed", CONNECTED, signed=signed_as(X_WEBHOOK, "sha256={}")
    ),
    "signature with its algorithm, upper case": Form(
        new, CREATED, "processed", CONNECTED, signed=signed_as(X_WEBHOOK, "SHA256={}")
    ),
    "signature in another header": Form(
        new, CREATED, "processed", CONNECTED, signed=signed_as(KAPSO)
    ),
    "signature in another header, with its algorithm": Form(
        new, CREATED, "processed", CONNECTED, signed=signed_as(KAPSO, "sha256={}")
    ),
    "wrong signature": Form(
        new, CREATED, "", status=401, signed=signed_as(X_WEBHOOK, secret="other")
    ),
    "wrong signature in another header": Form(
        new, CREATED, "", status=401, signed=signed_as(KAPSO, secret="other")
    ),
    "signature of another algorithm": Form(
        new, CREATED, "", status=401, signed=signed_as(X_WEBHOOK, "sha1={}")
    ),
    "no signature": Form(new, CREATED, "", status=401, signed=lambda body: {}),
    "the secret itself": Form(
        new, CREATED, "", status=401, signed=lambda body: {X_WEBHOOK: SECRET}
    ),
    # A number's end: believed if its name and time are signed
    "deleted": Form(old, DELETED, "pending"),
    "deleted, envelope": Form({"event": DELETED, "data": old}, None, "pending", name=DELETED),
    "deleted, envelope, name in the header": Form({"data": old}, DELETED, "pending"),
    "deleted, unknown number": Form(new, DELETED, "processed", {NEW: "not connected"}),
    "deleted, unknown number of nobody": Form(without(new, "customer"), DELETED, "ignored"),
    "disconnected": Form(withdrawn, DISCONNECTED, "processed", GONE),
    "disconnected, reason null": Form(
        {**withdrawn, "disconnection": {"reason": None, "initiated_by": None}},
        *(DISCONNECTED, "processed", GONE),
    ),
    "disconnected, no customer": Form(
        without(withdrawn, "customer"), DISCONNECTED, "processed", GONE
    ),
    "disconnected, envelope": Form(
        {"event": DISCONNECTED, "data": without(withdrawn, "event")},
        *(None, "processed", GONE, DISCONNECTED),
    ),
    "disconnected, batch": Form(
        {"type": DISCONNECTED, "batch": True, "data": [withdrawn]}, None, "processed", GONE
    ),
    "disconnected, name in the header": Form(without(withdrawn, "event"), DISCONNECTED, "pending"),
    "disconnected, envelope, name in the header": Form(
        {"data": without(withdrawn, "event")}, DISCONNECTED, "pending"
    ),
    "disconnected, no time": Form(without(withdrawn, "occurred_at"), DISCONNECTED, "pending"),
    "disconnected, before it was connected": Form(
        {**withdrawn, "occurred_at": "2026-01-01T00:00:00Z"}, DISCONNECTED, "pending"
    ),
    "offboarded": Form(lifecycle(OFFBOARDED), OFFBOARDED, "processed", GONE),
    "reconnected": Form(lifecycle(RECONNECTED), RECONNECTED, "processed"),
    "reconnected, unknown number": Form(
        lifecycle(RECONNECTED, phone_number_id=NEW), RECONNECTED, "pending"
    ),
    # Accounts
    "restricted": Form(
        account(RESTRICTED, **restriction), RESTRICTED, "processed", {"account": "restricted"}
    ),
    "restricted, by its account alone": Form(
        account(RESTRICTED, number=None, **restriction),
        *(RESTRICTED, "processed", {"account": "restricted"}),
    ),
    "restricted, another site's account": Form(
        account(RESTRICTED, waba="800", number="300", **restriction), RESTRICTED, "ignored"
    ),
    "restricted, name in the header, and it is": Form(
        without(account(RESTRICTED, **restriction), "event"),
        *(RESTRICTED, "processed", {"account": "restricted"}),
    ),
    "restricted, name in the header": Form(
        without(account(RESTRICTED), "event"), RESTRICTED, "failed"
    ),
    "restricted, name in the header, another site's account": Form(
        without(account(RESTRICTED, waba="800", number="300"), "event"), RESTRICTED, "ignored"
    ),
    "restricted, no time": Form(
        without(account(RESTRICTED, **restriction), "occurred_at"), RESTRICTED, "failed"
    ),
    "disabled": Form(
        account(DISABLED, ban={"state": "DISABLE"}), DISABLED, "processed", {"account": "disabled"}
    ),
    "disabled, envelope": Form(
        {"event": DISABLED, "data": without(account(DISABLED), "event")},
        *(None, "processed", {"account": "disabled"}, DISABLED),
    ),
    "reinstated": Form(account(REINSTATED, ban={"state": "REINSTATE"}), REINSTATED, "processed"),
    "violation": Form(account(VIOLATION, violation={"type": "SPAM"}), VIOLATION, "processed"),
    # What this app does not act on is never an error
    "agent run": Form({"event": "kapso_agent.run.completed", **agent_run}, None, "ignored"),
    "agent run, name in the header": Form(agent_run, "kapso_agent.run.failed", "ignored"),
    "workflow": Form({"event": "workflow.execution.handoff", "workflow_id": "w"}, None, "ignored"),
    "project event": Form(
        {"id": "e", "event": "project.event", "name": "signup", "properties": {}}, None, "ignored"
    ),
    "config created": Form(new, "whatsapp.config.created", "ignored"),
    "config deleted": Form({"event": "whatsapp.config.deleted", "data": old}, None, "ignored"),
    "message": Form(message, RECEIVED, ""),  # it is only announced
    "message, a batch of one": Form(
        {"type": RECEIVED, "batch": True, "data": [message], "batch_info": {}},
        *(RECEIVED, ""),
        headers=IN_BATCH,
    ),
    "messages and something else": Form(
        {"type": RECEIVED, "batch": True, "data": [message, 5]}, RECEIVED, "ignored"
    ),
    "message, nested too deep": Form({**message, "x": deep}, RECEIVED, "ignored"),
    "message in Meta's form": Form(meta_body, None, ""),
    "never existed": Form(message, "whatsapp.message.status_updated", ""),
    "comes next": Form({"event": "whatsapp.flow.published", "data": [1, 2]}, None, "ignored"),
    "empty": Form({}, None, "ignored", name=UNNAMED_EVENT),
    # No delivery
    "list": Form([new], CREATED, "", status=400),
    "no JSON": Form(b"phone_number_id=1", CREATED, "", status=400),
    "no body": Form(b"", CREATED, "", status=400),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_form(client: Client, form: Form) -> None:
    customer = make_customer(kapso_id=OURS["id"], external_customer_id=OURS["external_id"])
    make_connection(
        customer,
        phone_number_id=OLD,
        business_account_id=WABA,
        connected_at=django_timezone.now() - timedelta(hours=1),
    )
    body = form.body if isinstance(form.body, bytes) else json.dumps(form.body).encode()
    body = body.replace(b'"now"', json.dumps(datetime.now(timezone.utc).isoformat()).encode())
    headers = {"X-Idempotency-Key": "7d4f5a1e-1f60-4c33-bb0b-7f0f7c1b6f1e", **form.headers}
    if form.header is not None:
        headers["X-Webhook-Event"] = form.header

    response = client.post(
        WEBHOOK, body, content_type="application/json", headers={**headers, **form.signed(body)}
    )

    assert response.status_code == form.status
    stored = WebhookEvent.objects.order_by("pk")
    assert [event.status for event in stored] == form.stored.split()
    if expected := form.name or form.header:
        assert {event.event for event in stored} <= {expected}
    states = dict.fromkeys((NEW, NEW_TOO, OLD), "")
    for connection in Connection.objects.all():
        is_connected = connection.is_connected
        states[connection.phone_number_id] = "connected" if is_connected else "not connected"
    account_status = Connection.objects.get(phone_number_id=OLD).account_status
    assert {**states, "account": account_status} == {**UNCHANGED, **form.changes}
    # What was not acted on says why.
    assert all(event.last_error for event in stored if event.status != "processed")
