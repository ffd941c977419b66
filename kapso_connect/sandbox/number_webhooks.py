"""The webhooks of one phone number, which are for its messages and conversations."""

from __future__ import annotations

from django.http import HttpRequest

from . import fields
from .state import Webhook, find, store
from .subscriptions import WEBHOOK_KINDS, add_webhook, change_webhook
from .web import SandboxView, page_of, query, read_wrapped


def _webhooks_of(phone_number_id: str) -> dict[str, Webhook]:
    find(store.numbers(), phone_number_id, "Phone number")
    return {
        webhook.id: webhook
        for webhook in store.webhooks.values()
        if webhook.phone_number_id == phone_number_id
    }


class NumberWebhooksView(SandboxView):
    def get(self, request: HttpRequest, phone_number_id: str) -> object:
        rows = list(reversed(_webhooks_of(phone_number_id).values()))
        if part := query(request, "url_contains"):
            rows = [row for row in rows if part in row.url]
        if kind := query(request, "kind", fields.choice(*WEBHOOK_KINDS)):
            rows = [row for row in rows if row.kind == kind]
        if active := query(request, "active", fields.choice("true", "false")):
            rows = [row for row in rows if row.active == (active == "true")]
        return page_of(request, rows)

    def post(self, request: HttpRequest, phone_number_id: str) -> object:
        find(store.numbers(), phone_number_id, "Phone number")
        data = read_wrapped(request, "whatsapp_webhook")
        return 201, {"data": add_webhook(data, phone_number_id=phone_number_id).as_json()}


class NumberWebhookView(SandboxView):
    def get(self, request: HttpRequest, phone_number_id: str, webhook_id: str) -> object:
        return {"data": find(_webhooks_of(phone_number_id), webhook_id, "Webhook").as_json()}

    def patch(self, request: HttpRequest, phone_number_id: str, webhook_id: str) -> object:
        webhook = find(_webhooks_of(phone_number_id), webhook_id, "Webhook")
        change_webhook(webhook, read_wrapped(request, "whatsapp_webhook"))
        return {"data": webhook.as_json()}

    def delete(self, request: HttpRequest, phone_number_id: str, webhook_id: str) -> object:
        find(_webhooks_of(phone_number_id), webhook_id, "Webhook")
        del store.webhooks[webhook_id]
        return 204, None
