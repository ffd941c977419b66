"""Webhook subscriptions, of the project and of one phone number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.http import HttpRequest

from . import fields, messages, payloads
from .fields import Invalid
from .state import Delivery, PhoneNumber, Webhook, find, find_number, store
from .web import SandboxView, flag, page_of, query, read_object, read_wrapped
from .webhooks import sender

WEBHOOK_KINDS = ("kapso", "meta")


def _headers(name: str, value: object) -> dict[str, str]:
    token = fields.pattern(r"[A-Za-z0-9-]{1,100}", "made of header names")
    headers = fields.mapping(name, value)
    return {token(name, key): fields.printable(name, item) for key, item in headers.items()}


WEBHOOK_SPEC: fields.Spec = {
    "url": fields.url,
    "kind": fields.choice(*WEBHOOK_KINDS),
    "secret_key": fields.nullable(fields.non_empty),
    "active": fields.boolean,
    "events": fields.list_of(fields.text),
    "headers": fields.nullable(_headers),
    "payload_version": fields.nullable(fields.choice("v1", "v2")),
    "buffer_enabled": fields.boolean,
    "buffer_window_seconds": fields.nullable(fields.number(1, 60, fields.whole)),
    "max_buffer_size": fields.nullable(fields.number(1, 100, fields.whole)),
    "buffer_events": fields.list_of(fields.text),
    "inactivity_minutes": fields.nullable(fields.number(1, 1440, fields.whole)),
}


def read_webhook(
    data: Mapping[str, Any], *, phone_number_id: str | None = None, current: Webhook | None = None
) -> dict[str, Any]:
    """Return the fields to store of a new webhook, or of a change of the ``current`` one.

    ``phone_number_id`` is the number that a new one is for; None makes it one of the project. It is
    in the result. Raise Invalid.
    """
    values = fields.read(WEBHOOK_SPEC, data)
    if current is None:
        if "url" not in values:
            raise Invalid("Validation failed: url can't be blank")
        current = Webhook("", store.project_id, kind=values.get("kind", "kapso"))
        current.phone_number_id = values["phone_number_id"] = phone_number_id
        _check_kind(current)
    elif values.get("kind", current.kind) != current.kind:
        raise Invalid("kind can't be changed after the webhook was created")
    if values.get("headers", {}) is None:
        values["headers"] = {}
    if current.kind == "meta" and values.get("buffer_enabled"):
        raise Invalid("buffer_enabled is not supported for webhooks of kind meta")
    of_number = current.phone_number_id is not None
    supported = payloads.NUMBER_EVENTS if of_number else payloads.PROJECT_EVENTS
    _check_events(values.get("events", []), supported)
    _check_events(values.get("buffer_events", []), payloads.NUMBER_EVENTS)
    if current.kind == "meta":
        values["events"] = []  # it gets everything, as Meta sends it
    if of_number:
        if not values.get("secret_key", current.secret_key):
            raise Invalid("Validation failed: secret_key can't be blank")
        if current.kind == "kapso" and not values.get("events", current.events):
            raise Invalid("Validation failed: events can't be blank")
    return values


def _check_kind(webhook: Webhook) -> None:
    """Refuse a webhook in Meta's form without a number, and a second one for the same number."""
    if webhook.kind == "kapso":
        return
    if webhook.phone_number_id is None:
        raise Invalid("phone_number_id is required for webhooks of kind meta")
    for other in store.webhooks.values():
        if (other.kind, other.phone_number_id) == ("meta", webhook.phone_number_id):
            raise Invalid("This phone number already has a webhook of kind meta")


def _check_events(events: list[str], supported: tuple[str, ...]) -> None:
    others = ", ".join(f'"{event}"' for event in events if event not in supported)
    if others:
        raise Invalid(f"Events contains unsupported events: {others}")


def change_webhook(webhook: Webhook, data: Mapping[str, Any]) -> None:
    """Change a webhook as a client asks for. Raise Invalid."""
    values = read_webhook(data, current=webhook)
    webhook.change(values)
    if values.get("active"):
        webhook.outcomes.clear()  # reactivating a paused webhook starts the count again


def add_webhook(data: Mapping[str, Any], *, phone_number_id: str | None = None) -> Webhook:
    """Add a webhook as a client asks for: of that number, or of the project. Raise Invalid."""
    values = read_webhook(data, phone_number_id=phone_number_id)
    webhook = Webhook(project_id=store.project_id, **values)
    store.webhooks[webhook.id] = webhook
    return webhook


def _webhooks_of(phone_number_id: str | None) -> dict[str, Webhook]:
    """Return the webhooks of a number; None stands for those of the project and of all numbers."""
    if phone_number_id is None:
        return store.webhooks
    find_number(phone_number_id)
    rows = store.webhooks.values()
    return {row.id: row for row in rows if row.phone_number_id == phone_number_id}


def _listed(request: HttpRequest, phone_number_id: str | None = None) -> list[Webhook]:
    rows = list(reversed(_webhooks_of(phone_number_id).values()))
    kind = query(request, "kind", fields.choice(*WEBHOOK_KINDS))
    return [row for row in rows if not kind or row.kind == kind]


class WebhooksView(SandboxView):
    def get(self, request: HttpRequest) -> object:
        """List the webhooks of the project and of all numbers."""
        return page_of(request, _listed(request))

    def post(self, request: HttpRequest) -> object:
        data = read_wrapped(request, "whatsapp_webhook")
        phone_number_id = None
        if "phone_number_id" in data:
            phone_number_id = fields.meta_id("phone_number_id", data["phone_number_id"])
            find_number(phone_number_id)
        return 201, {"data": add_webhook(data, phone_number_id=phone_number_id).as_json()}


class NumberWebhooksView(SandboxView):
    def get(self, request: HttpRequest, phone_number_id: str) -> object:
        rows = _listed(request, phone_number_id)
        if part := query(request, "url_contains"):
            rows = [row for row in rows if part in row.url]
        active = flag(request, "active")
        if active is not None:
            rows = [row for row in rows if row.active == active]
        return page_of(request, rows)

    def post(self, request: HttpRequest, phone_number_id: str) -> object:
        find_number(phone_number_id)
        data = read_wrapped(request, "whatsapp_webhook")
        return 201, {"data": add_webhook(data, phone_number_id=phone_number_id).as_json()}


class WebhookView(SandboxView):
    """A webhook; under the path of a number, one of that number."""

    def get(
        self, request: HttpRequest, webhook_id: str, phone_number_id: str | None = None
    ) -> object:
        return {"data": find(_webhooks_of(phone_number_id), webhook_id, "Webhook").as_json()}

    def patch(
        self, request: HttpRequest, webhook_id: str, phone_number_id: str | None = None
    ) -> object:
        webhook = find(_webhooks_of(phone_number_id), webhook_id, "Webhook")
        change_webhook(webhook, read_wrapped(request, "whatsapp_webhook"))
        return {"data": webhook.as_json()}

    def delete(
        self, request: HttpRequest, webhook_id: str, phone_number_id: str | None = None
    ) -> object:
        find(_webhooks_of(phone_number_id), webhook_id, "Webhook")
        del store.webhooks[webhook_id]
        return 204, None


class WebhookTestView(SandboxView):
    def post(self, request: HttpRequest, webhook_id: str) -> object:
        send_test_delivery(webhook_id, read_object(request))
        return {"data": {"success": True}}


def send_test_delivery(webhook_id: str, data: Mapping[str, Any]) -> list[Delivery]:
    """Send a sample of one event of the webhook: the first, if the client does not choose."""
    webhook = find(store.webhooks, webhook_id, "Webhook")
    if not webhook.events:
        raise Invalid("The webhook has no events")
    event = fields.text("event_type", data.get("event_type", webhook.events[0]))
    if event not in webhook.events:
        raise Invalid(f"event_type is not an event of this webhook: {event}")
    sample = PhoneNumber("123456789012345", "+1 555-123-4567", business_account_id="0" * 15)
    if webhook.phone_number_id is None:
        payload = payloads.build(event, sample)
    else:
        payload = messages.sample(event, store.numbers().get(webhook.phone_number_id, sample))
    deliveries = sender.emit(event, payload, only=webhook)
    for delivery in deliveries:
        delivery.forced = True
    return deliveries
