"""The sandbox's own controls under ``/sandbox/``. Kapso has none of them."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import count, islice
from typing import Any

from django.http import HttpRequest

from . import api, fields, payloads
from .faults import FAULTS_SPEC, Faults
from .fields import ApiError, Invalid
from .middleware import has_key
from .state import Customer, Delivery, PhoneNumber, Webhook, find, store
from .web import SandboxView, query, read_object
from .webhooks import sender

whole_number = fields.pattern(r"[0-9]{1,9}", "a whole number")

SEED_SPEC: fields.Spec = {
    "customers": fields.count,
    "numbers_per_customer": fields.count,
    "prefix": fields.non_blank,
    "webhooks": fields.boolean,
}
NUMBER_SPEC: fields.Spec = {
    "customer_id": fields.nullable(fields.text),
    "business_account_id": fields.nullable(fields.digits),
    "name": fields.text,
    "verified_name": fields.nullable(fields.text),
    "is_coexistence": fields.boolean,
    "status": fields.text,
    "quality_rating": fields.nullable(fields.text),
    "name_status": fields.nullable(fields.text),
    "code_verification_status": fields.nullable(fields.text),
    "access_error": fields.text,
    "payment_problem": fields.boolean,
    "created_at": fields.date_time,
    "updated_at": fields.date_time,
}
NUMBER_PATCH_SPEC: fields.Spec = {**NUMBER_SPEC, "display_phone_number": fields.text}
NEW_NUMBER_SPEC: fields.Spec = {
    **NUMBER_SPEC,
    "external_customer_id": fields.nullable(fields.text),
    "phone_number": fields.nullable(fields.e164),
    "phone_number_id": fields.nullable(fields.digits),
    "webhook": fields.boolean,
}
LINK_SPEC: fields.Spec = {
    **api.LINK_PATCH_SPEC,
    "status": fields.choice(*api.LINK_STATUSES),
    "created_at": fields.date_time,
    "whatsapp_setup_status": fields.choice("pending", "processing", "completed", "failed"),
    "whatsapp_setup_error": fields.nullable(fields.text),
    "reconnect_phone_number": fields.nullable(fields.phone_digits),
    "meta_billing_mode": fields.choice(*api.BILLING_MODE_NAMES),
}
DEFAULT_WEBHOOK_SPEC: fields.Spec = {"url": fields.nullable(fields.url), "secret": fields.text}
EVENT_SPEC: fields.Spec = {
    "event": fields.non_blank,
    "phone_number_id": fields.text,
    "payload": fields.mapping,
    "idempotency_key": fields.pattern(r"[!-~]{1,200}", "printable ASCII"),
    "webhook_id": fields.text,
    "apply": fields.boolean,
    "legacy": fields.boolean,
    "reason": fields.nullable(fields.text),
    "initiated_by": fields.nullable(fields.text),
    "source_event": fields.choice(*payloads.DISCONNECTION_SOURCES),
}
RATE_LIMIT_SPEC: fields.Spec = {"limit": fields.count}


def restart() -> None:
    """Empty the store, and register the webhook of the command line again."""
    with store.lock:
        store.reset()
        store.lock.notify_all()  # requests that hang go on
        sender.clear()
        if store.options.webhook_url:
            set_default_webhook(store.options.webhook_url, store.options.webhook_secret)


def set_default_webhook(url: str | None, secret: str) -> None:
    store.webhooks.pop(store.default_webhook_id, None)
    if url:
        events = list(payloads.PROJECT_EVENTS)
        webhook = Webhook(url, store.project_id, secret_key=secret or None, events=events)
        store.webhooks[webhook.id] = webhook
        store.default_webhook_id = webhook.id


class ReadyView(SandboxView):
    def get(self, request: HttpRequest) -> object:
        return {"ready": True}


class ResetView(SandboxView):
    def post(self, request: HttpRequest) -> object:
        restart()
        return {"reset": True}


class FaultsView(SandboxView):
    def get(self, request: HttpRequest) -> object:
        return asdict(store.faults)

    def post(self, request: HttpRequest) -> object:
        changes = fields.read_strictly(FAULTS_SPEC, read_object(request))
        return _set_faults(replace(store.faults, **changes))

    def delete(self, request: HttpRequest) -> object:
        return _set_faults(Faults())


def _set_faults(faults: Faults) -> object:
    """Replace the faults, and send the deliveries that the old ones held back."""
    before = store.faults
    if (before.batch, before.reorder) != (faults.batch, faults.reorder):
        sender.release()
    store.faults = faults
    store.lock.notify_all()  # requests that hang go on
    return asdict(faults)


class RateLimitView(SandboxView):
    def post(self, request: HttpRequest) -> object:
        """Set how many requests a minute each key has, and count anew; 0 stands for no limit."""
        data = fields.read_strictly(RATE_LIMIT_SPEC, read_object(request), required="limit")
        store.rate_limit = data["limit"]
        store.requests_by_key.clear()
        return data


class DefaultWebhookView(SandboxView):
    def post(self, request: HttpRequest) -> object:
        """Replace the webhook that gets every event; the URL null removes it."""
        data = fields.read_strictly(DEFAULT_WEBHOOK_SPEC, read_object(request), required="url")
        set_default_webhook(data["url"], data.get("secret", store.options.webhook_secret))
        webhook = store.webhooks.get(store.default_webhook_id)
        return {"webhook": _webhook_json(request, webhook) if webhook else None}


def _webhook_json(request: HttpRequest, webhook: Webhook) -> dict[str, Any]:
    """Return a webhook; its secret only to those who have the API key, as Kapso's API does."""
    shown = webhook.as_json()
    return shown if has_key(request) else {**shown, "secret_key": None}


class SeedView(SandboxView):
    def post(self, request: HttpRequest) -> object:
        """Create customers ``<prefix>-1`` … ``<prefix>-n``, each with numbers."""
        data = fields.read_strictly(SEED_SPEC, read_object(request))
        prefix, wanted = data.get("prefix", "seed"), data.get("customers", 0)
        numbers_each = data.get("numbers_per_customer", 0)
        if wanted * (1 + numbers_each) > 1_000_000:
            raise Invalid("that is more than 1000000 objects")
        taken = {customer.external_customer_id for customer in store.customers.values()}
        free = (i for i in count(1) if f"{prefix}-{i}" not in taken)
        for i in islice(free, wanted):
            customer = store.add_customer(f"{prefix} {i}", f"{prefix}-{i}")
            for _ in range(numbers_each):
                _add_number(customer, {}, announce=data.get("webhooks", False))
        return 201, {"customers": wanted, "phone_numbers": wanted * numbers_each}


class NumbersView(SandboxView):
    def post(self, request: HttpRequest) -> object:
        data = fields.read_strictly(NEW_NUMBER_SPEC, read_object(request))
        announce = data.pop("webhook", False)
        owner = _owner(data.pop("customer_id", None), data.pop("external_customer_id", None))
        return 201, {"data": _add_number(owner, data, announce=announce).as_json()}


def _owner(customer_id: str | None, external_id: str | None) -> Customer | None:
    if customer_id is not None:
        return find(store.customers, customer_id, "Customer")
    if external_id is None:
        return None
    known = store.customer_by_external_id(external_id)
    return known or store.add_customer(external_id, external_id)


def _add_number(owner: Customer | None, values: dict[str, Any], *, announce: bool) -> PhoneNumber:
    defaults: dict[str, Any] = {}
    if owner:
        defaults["customer_id"] = owner.id
        defaults["business_account_id"] = owner.business_account_id
        defaults["verified_name"] = owner.name
    number = store.add_number(**{**defaults, **values})
    if announce:
        sender.emit(payloads.CREATED_EVENT, payloads.build(payloads.CREATED_EVENT, number))
    return number


class NumberView(SandboxView):
    def patch(self, request: HttpRequest, phone_number_id: str) -> object:
        number = find(store.numbers(), phone_number_id, "Phone number")
        data = fields.read_strictly(NUMBER_PATCH_SPEC, read_object(request))
        if data.get("customer_id") is not None:
            find(store.customers, data["customer_id"], "Customer")
        number.change(data)
        return {"data": number.as_json()}


class SetupLinkView(SandboxView):
    def patch(self, request: HttpRequest, setup_link_id: str) -> object:
        link = find(store.links, setup_link_id, "Setup link")
        link.change(fields.read_strictly(LINK_SPEC, read_object(request)))
        return {"data": link.as_json()}


class EventsView(SandboxView):
    def post(self, request: HttpRequest) -> object:
        data = fields.read_strictly(EVENT_SPEC, read_object(request), required="event")
        if "phone_number_id" not in data and "payload" not in data:
            raise Invalid("phone_number_id (a number of the sandbox) or payload is missing")
        only = find(store.webhooks, data["webhook_id"], "Webhook") if "webhook_id" in data else None
        payload = {**_payload_of_number(data), **data.get("payload", {})}
        deliveries = sender.emit(data["event"], payload, key=data.get("idempotency_key"), only=only)
        return 201, {"payload": payload, "deliveries": [delivery.id for delivery in deliveries]}


def _payload_of_number(data: dict[str, Any]) -> dict[str, Any]:
    """Return the body of the event for a number, and change the number as the event says."""
    if "phone_number_id" not in data:
        return {}
    event, number = data["event"], find(store.numbers(), data["phone_number_id"], "Phone number")
    names = ("legacy", "reason", "initiated_by", "source_event")
    options = {name: data[name] for name in names if name in data}
    payload = payloads.build(event, number, **options)
    if not data.get("apply", True):
        return payload
    if event in (payloads.DISCONNECTED_EVENT, payloads.OFFBOARDED_EVENT):
        number.change({"status": "DISCONNECTED"})
    elif event == payloads.RECONNECTED_EVENT:
        number.change({"status": "CONNECTED"})
    elif event == payloads.DELETED_EVENT:
        store.tear_down_number(number)
    elif event in payloads.ACCOUNT_SOURCES and number.business_account_id:
        store.apply_account_event(event, number.business_account_id)
    return payload


class DeliveriesView(SandboxView):
    def get(self, request: HttpRequest) -> object:
        """List them; ``?settled=n&timeout=s`` first waits until n are done."""
        wanted = int(query(request, "settled", whole_number) or 0)
        timeout = min(int(query(request, "timeout", whole_number) or 10), 60)
        store.wait_for(lambda: store.deliveries_done >= wanted, timeout)
        return {"data": [delivery.as_json() for delivery in store.deliveries.values()]}


class ResendView(SandboxView):
    def post(self, request: HttpRequest, delivery_id: str) -> object:
        data = fields.read_strictly({"new_key": fields.boolean}, read_object(request))
        return 202, {"data": resend(delivery_id, new_key=data.get("new_key", False)).as_json()}


def resend(delivery_id: str, *, new_key: bool) -> Delivery:
    delivery = find(store.deliveries, delivery_id, "Delivery")
    if delivery.webhook_id not in store.webhooks:
        raise ApiError(409, "The webhook of this delivery was removed")
    return sender.resend(delivery, new_key=new_key)


class StateView(SandboxView):
    def get(self, request: HttpRequest) -> object:
        numbers, links = store.numbers().values(), store.links.values()
        return {
            "counts": {
                "customers": len(store.customers),
                "setup_links": len(links),
                "phone_numbers": len(numbers),
                "webhooks": len(store.webhooks),
                "deliveries": len(store.deliveries),
                "deliveries_settled": store.deliveries_done,
                "requests": len(store.requests),
            },
            "project_id": store.project_id,
            "customers": [customer.as_json() for customer in store.customers.values()],
            "setup_links": [{**link.as_json(), "customer_id": link.customer_id} for link in links],
            "phone_numbers": [number.as_json() for number in numbers],
            "webhooks": [_webhook_json(request, w) for w in store.webhooks.values()],
            "faults": asdict(store.faults),
        }


class RequestsView(SandboxView):
    def get(self, request: HttpRequest) -> object:
        return {"data": list(store.requests)}
