"""The sandbox's own controls under ``/sandbox/``. Kapso has none of them."""

from __future__ import annotations

from itertools import count, islice
from typing import Any

from django.http import HttpRequest

from . import api, fields, payloads, serializers
from .faults import Faults
from .fields import ApiError, Invalid
from .state import Customer, PhoneNumber, SetupLink, Webhook, apply, store
from .web import query, read_object
from .webhooks import sender

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
    "created_at": fields.date_time,
    "whatsapp_setup_status": fields.choice("pending", "processing", "completed", "failed"),
    "whatsapp_setup_error": fields.nullable(fields.text),
    "reconnect_phone_number": fields.nullable(fields.e164),
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
}


def restart() -> None:
    """Empty the store, and register the webhook of the command line again."""
    with store.lock:
        store.faults.ended.set()
        store.reset()
        sender.clear()
        if store.options.webhook_url:
            set_default_webhook(store.options.webhook_url, store.options.webhook_secret)


def set_default_webhook(url: str | None, secret: str) -> None:
    store.webhooks.pop(store.default_webhook_id, None)
    if url:
        events = list(payloads.KNOWN_EVENTS)
        webhook = Webhook(url, store.project_id, secret_key=secret or None, events=events)
        store.webhooks[webhook.id] = webhook
        store.default_webhook_id = webhook.id


def ready(request: HttpRequest) -> object:
    return {"ready": True}


def reset(request: HttpRequest) -> object:
    restart()
    return {"reset": True}


def get_faults(request: HttpRequest) -> object:
    return store.faults.as_json()


def set_faults(request: HttpRequest) -> object:
    return _replace_faults(store.faults.changed(read_object(request)))


def clear_faults(request: HttpRequest) -> object:
    return _replace_faults(Faults())


def _replace_faults(faults: Faults) -> object:
    """Replace the faults, and send the deliveries that the old ones held back."""
    before = store.faults
    if (before.batch, before.reorder) != (faults.batch, faults.reorder):
        sender.release()
    if before.ended is not faults.ended:
        before.ended.set()
    store.faults = faults
    return faults.as_json()


def set_webhook(request: HttpRequest) -> object:
    data = fields.read_strictly(DEFAULT_WEBHOOK_SPEC, read_object(request))
    if "url" not in data:
        raise Invalid("url is missing; null removes the webhook")
    set_default_webhook(data["url"], data.get("secret", store.options.webhook_secret))
    webhook = store.webhooks.get(store.default_webhook_id)
    return {"webhook": serializers.webhook(webhook) if webhook else None}


def seed(request: HttpRequest) -> object:
    """Create customers ``<prefix>-1`` … ``<prefix>-n``, each with numbers."""
    data = fields.read_strictly(SEED_SPEC, read_object(request))
    prefix, wanted = data.get("prefix", "seed"), data.get("customers", 0)
    numbers_each = data.get("numbers_per_customer", 0)
    if wanted * (1 + numbers_each) > 1_000_000:
        raise Invalid("that is more than 1000000 objects")
    free = (i for i in count(1) if f"{prefix}-{i}" not in store.customer_by_external_id)
    for i in islice(free, wanted):
        customer = store.add_customer(f"{prefix} {i}", f"{prefix}-{i}")
        for _ in range(numbers_each):
            number = store.add_number(**_number_defaults(customer))
            if data.get("webhooks"):
                sender.emit(payloads.CREATED_EVENT, payloads.build(payloads.CREATED_EVENT, number))
    return 201, {"customers": wanted, "phone_numbers": wanted * numbers_each}


def _number_defaults(customer: Customer | None) -> dict[str, Any]:
    if customer is None:
        return {}
    waba = customer.business_account_id
    return {"customer_id": customer.id, "business_account_id": waba, "verified_name": customer.name}


def add_number(request: HttpRequest) -> object:
    data = fields.read_strictly(NEW_NUMBER_SPEC, read_object(request))
    announce = data.pop("webhook", False)
    owner = _owner(data.pop("customer_id", None), data.pop("external_customer_id", None))
    number = store.add_number(**{**_number_defaults(owner), **data})
    if announce:
        sender.emit(payloads.CREATED_EVENT, payloads.build(payloads.CREATED_EVENT, number))
    return 201, {"data": serializers.number(number)}


def _owner(customer_id: str | None, external_id: str | None) -> Customer | None:
    if customer_id is not None:
        return api.find_customer(customer_id)
    if external_id is None:
        return None
    known = store.customer_by_external_id.get(external_id)
    return known or store.add_customer(external_id, external_id)


def patch_number(request: HttpRequest, phone_number_id: str) -> object:
    number = api.find_number(phone_number_id)
    data = fields.read_strictly(NUMBER_PATCH_SPEC, read_object(request))
    if data.get("customer_id") is not None:
        api.find_customer(data["customer_id"])
    apply(number, data)
    return {"data": serializers.number(number)}


def patch_link(request: HttpRequest, setup_link_id: str) -> object:
    link = store.links.get(setup_link_id)
    if link is None:
        raise ApiError(404, "Setup link not found")
    apply(link, fields.read_strictly(LINK_SPEC, read_object(request)))
    return {"data": serializers.link(link)}


def send_event(request: HttpRequest) -> object:
    data = fields.read_strictly(EVENT_SPEC, read_object(request))
    if "event" not in data:
        raise Invalid("event is missing")
    if "phone_number_id" not in data and "payload" not in data:
        raise Invalid("phone_number_id (a number of the sandbox) or payload is missing")
    only = api.find_webhook(data["webhook_id"]) if "webhook_id" in data else None
    payload = _event_payload(data["event"], data)
    deliveries = sender.emit(data["event"], payload, key=data.get("idempotency_key"), only=only)
    return 201, {"payload": payload, "deliveries": [delivery.id for delivery in deliveries]}


def _event_payload(event: str, data: dict[str, Any]) -> dict[str, Any]:
    extra: dict[str, Any] = data.get("payload", {})
    if "phone_number_id" not in data:
        return extra
    number = api.find_number(data["phone_number_id"])
    options = {name: data[name] for name in ("legacy", "reason", "initiated_by") if name in data}
    payload = payloads.build(event, number, **options)
    if data.get("apply", True):
        _apply_event(event, number)
    return {**payload, **extra}


def _apply_event(event: str, number: PhoneNumber) -> None:
    """Change the number as the event says."""
    if event == payloads.DISCONNECTED_EVENT:
        apply(number, {"status": "DISCONNECTED"})
    elif event == payloads.RECONNECTED_EVENT:
        apply(number, {"status": "CONNECTED"})
    elif event == payloads.DELETED_EVENT:
        store.tear_down_number(number)
    elif event == payloads.OFFBOARDED_EVENT:
        store.forget_number(number.phone_number_id)


def state(request: HttpRequest) -> object:
    numbers = store.numbers().values()
    return {
        "counts": {
            "customers": len(store.customers),
            "setup_links": len(store.links),
            "phone_numbers": len(numbers),
            "webhooks": len(store.webhooks),
            "deliveries": len(store.deliveries),
            "deliveries_settled": store.deliveries_done,
            "requests": len(store.requests),
        },
        "project_id": store.project_id,
        "customers": [serializers.customer(customer) for customer in store.customers.values()],
        "setup_links": [_with_customer(link) for link in store.links.values()],
        "phone_numbers": [serializers.number(number) for number in numbers],
        "webhooks": [serializers.webhook(webhook) for webhook in store.webhooks.values()],
        "faults": store.faults.as_json(),
    }


def _with_customer(link: SetupLink) -> dict[str, Any]:
    return {**serializers.link(link), "customer_id": link.customer_id}


def requests(request: HttpRequest) -> object:
    return {"data": [serializers.logged_request(entry) for entry in store.requests]}


def deliveries(request: HttpRequest) -> object:
    """List the deliveries; ``?settled=n&timeout=s`` first waits until n (of any event) are done."""
    event = query(request, "event", fields.text)
    wanted = int(query(request, "settled", _whole_number) or 0)
    timeout = min(int(query(request, "timeout", _whole_number) or 10), 60)

    sender.wait(lambda: store.deliveries_done >= wanted, timeout)
    rows = [row for row in store.deliveries.values() if event in (None, row.event)]
    return {"data": [serializers.delivery(row) for row in rows]}


def _whole_number(name: str, value: object) -> int:
    return fields.count(name, int(str(fields.pattern(r"[0-9]{1,9}", "a number")(name, value))))
