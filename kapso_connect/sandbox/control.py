"""The sandbox's own switches under ``/sandbox/``: nothing of this exists at Kapso."""

from __future__ import annotations

from itertools import count, islice
from typing import Any

from django.http import HttpRequest

from . import api, fields, payloads, shapes
from .faults import Faults
from .fields import ApiError, Invalid
from .state import Customer, PhoneNumber, SetupLink, Webhook, apply, world
from .web import query, read_object
from .webhooks import sender

SEED: fields.Spec = {
    "customers": fields.count,
    "numbers_per_customer": fields.count,
    "prefix": fields.filled,
    "webhooks": fields.boolean,
}
NUMBER: fields.Spec = {
    "customer_id": fields.nullable(fields.text),
    "business_account_id": fields.nullable(fields.digits),
    "name": fields.text,
    "verified_name": fields.nullable(fields.text),
    "is_coexistence": fields.boolean,
    "status": fields.text,
    "quality_rating": fields.nullable(fields.text),
    "name_status": fields.nullable(fields.text),
    "code_verification_status": fields.nullable(fields.text),
    "created_at": fields.moment,
    "updated_at": fields.moment,
}
NUMBER_PATCH: fields.Spec = {**NUMBER, "display_phone_number": fields.text}
NEW_NUMBER: fields.Spec = {
    **NUMBER,
    "external_customer_id": fields.nullable(fields.text),
    "phone_number": fields.nullable(fields.e164),
    "phone_number_id": fields.nullable(fields.digits),
    "webhook": fields.boolean,
}
LINK: fields.Spec = {
    **api.LINK_PATCH,
    "created_at": fields.moment,
    "whatsapp_setup_status": fields.choice("pending", "processing", "completed", "failed"),
    "whatsapp_setup_error": fields.nullable(fields.text),
    "reconnect_phone_number": fields.nullable(fields.e164),
    "meta_billing_mode": fields.choice("customer_managed", "partner_managed"),
}
WEBHOOK: fields.Spec = {"url": fields.nullable(fields.url), "secret": fields.text}
EVENT: fields.Spec = {
    "event": fields.filled,
    "phone_number_id": fields.text,
    "payload": fields.mapping,
    "idempotency_key": fields.matching(r"[!-~]{1,200}", "printable ASCII"),
    "webhook_id": fields.text,
    "apply": fields.boolean,
    "legacy": fields.boolean,
    "reason": fields.nullable(fields.text),
    "initiated_by": fields.nullable(fields.text),
}


def restart() -> None:
    """Begin again with an empty world and the webhook of the command line."""
    with world.lock:
        world.faults.over.set()
        world.reset()
        sender.forget()
        if world.options.webhook_url:
            set_default_webhook(world.options.webhook_url, world.options.webhook_secret)


def set_default_webhook(url: str | None, secret: str) -> None:
    world.webhooks.pop(world.default_webhook_id, None)
    if url:
        events = list(payloads.EVENTS)
        webhook = Webhook(url, world.project_id, secret_key=secret or None, events=events)
        world.webhooks[webhook.id] = webhook
        world.default_webhook_id = webhook.id


def ready(request: HttpRequest) -> object:
    return {"ready": True}


def reset(request: HttpRequest) -> object:
    restart()
    return {"reset": True}


def get_faults(request: HttpRequest) -> object:
    return world.faults.as_json()


def set_faults(request: HttpRequest) -> object:
    return _replace_faults(world.faults.changed(read_object(request)))


def clear_faults(request: HttpRequest) -> object:
    return _replace_faults(Faults())


def _replace_faults(faults: Faults) -> object:
    """Put other faults in force; what the old ones held back goes out now."""
    before = world.faults
    if (before.batch, before.reorder) != (faults.batch, faults.reorder):
        sender.release()
    if before.over is not faults.over:
        before.over.set()
    world.faults = faults
    return faults.as_json()


def set_webhook(request: HttpRequest) -> object:
    given = fields.read_strictly(WEBHOOK, read_object(request))
    if "url" not in given:
        raise Invalid("url is missing; null takes the webhook away")
    set_default_webhook(given["url"], given.get("secret", world.options.webhook_secret))
    webhook = world.webhooks.get(world.default_webhook_id)
    return {"webhook": shapes.webhook(webhook) if webhook else None}


def seed(request: HttpRequest) -> object:
    """Make customers ``<prefix>-1`` … ``<prefix>-n``, each with numbers."""
    given = fields.read_strictly(SEED, read_object(request))
    prefix, wanted = given.get("prefix", "seed"), given.get("customers", 0)
    numbers_each = given.get("numbers_per_customer", 0)
    if wanted * (1 + numbers_each) > 1_000_000:
        raise Invalid("that is more than 1000000 objects")
    free = (i for i in count(1) if f"{prefix}-{i}" not in world.customer_by_external_id)
    for i in islice(free, wanted):
        customer = world.add_customer(f"{prefix} {i}", f"{prefix}-{i}")
        for _ in range(numbers_each):
            number = world.add_number(**_of(customer))
            if given.get("webhooks"):
                sender.emit(payloads.CREATED, payloads.build(payloads.CREATED, number))
    return 201, {"customers": wanted, "phone_numbers": wanted * numbers_each}


def _of(customer: Customer | None) -> dict[str, Any]:
    if customer is None:
        return {}
    waba = customer.business_account_id
    return {"customer_id": customer.id, "business_account_id": waba, "verified_name": customer.name}


def add_number(request: HttpRequest) -> object:
    given = fields.read_strictly(NEW_NUMBER, read_object(request))
    announce = given.pop("webhook", False)
    owner = _owner(given.pop("customer_id", None), given.pop("external_customer_id", None))
    number = world.add_number(**{**_of(owner), **given})
    if announce:
        sender.emit(payloads.CREATED, payloads.build(payloads.CREATED, number))
    return 201, {"data": shapes.number(number)}


def _owner(customer_id: str | None, external_id: str | None) -> Customer | None:
    if customer_id is not None:
        return api.find_customer(customer_id)
    if external_id is None:
        return None
    known = world.customer_by_external_id.get(external_id)
    return known or world.add_customer(external_id, external_id)


def patch_number(request: HttpRequest, phone_number_id: str) -> object:
    number = api.find_number(phone_number_id)
    given = fields.read_strictly(NUMBER_PATCH, read_object(request))
    if given.get("customer_id") is not None:
        api.find_customer(given["customer_id"])
    apply(number, given)
    return {"data": shapes.number(number)}


def patch_link(request: HttpRequest, setup_link_id: str) -> object:
    link = world.links.get(setup_link_id)
    if link is None:
        raise ApiError(404, "Setup link not found")
    apply(link, fields.read_strictly(LINK, read_object(request)))
    return {"data": shapes.link(link)}


def send_event(request: HttpRequest) -> object:
    given = fields.read_strictly(EVENT, read_object(request))
    if "event" not in given:
        raise Invalid("event is missing")
    if "phone_number_id" not in given and "payload" not in given:
        raise Invalid("phone_number_id (a number of the sandbox) or payload is missing")
    only = api.find_webhook(given["webhook_id"]) if "webhook_id" in given else None
    payload = _event_payload(given["event"], given)
    deliveries = sender.emit(given["event"], payload, key=given.get("idempotency_key"), only=only)
    return 201, {"payload": payload, "deliveries": [delivery.id for delivery in deliveries]}


def _event_payload(event: str, given: dict[str, Any]) -> dict[str, Any]:
    extra: dict[str, Any] = given.get("payload", {})
    if "phone_number_id" not in given:
        return extra
    number = api.find_number(given["phone_number_id"])
    options = {name: given[name] for name in ("legacy", "reason", "initiated_by") if name in given}
    payload = payloads.build(event, number, **options)
    if given.get("apply", True):
        _apply_event(event, number)
    return {**payload, **extra}


def _apply_event(event: str, number: PhoneNumber) -> None:
    """Let the number be as the event says that it is."""
    if event == payloads.DISCONNECTED:
        apply(number, {"status": "DISCONNECTED"})
    elif event == payloads.RECONNECTED:
        apply(number, {"status": "CONNECTED"})
    elif event == payloads.DELETED:
        world.tear_down_number(number)
    elif event == payloads.OFFBOARDED:
        world.forget_number(number.phone_number_id)


def state(request: HttpRequest) -> object:
    numbers = world.numbers().values()
    return {
        "counts": {
            "customers": len(world.customers),
            "setup_links": len(world.links),
            "phone_numbers": len(numbers),
            "webhooks": len(world.webhooks),
            "deliveries": len(world.deliveries),
            "deliveries_settled": world.settled,
            "requests": len(world.requests),
        },
        "project_id": world.project_id,
        "customers": [shapes.customer(customer) for customer in world.customers.values()],
        "setup_links": [_with_customer(link) for link in world.links.values()],
        "phone_numbers": [shapes.number(number) for number in numbers],
        "webhooks": [shapes.webhook(webhook) for webhook in world.webhooks.values()],
        "faults": world.faults.as_json(),
    }


def _with_customer(link: SetupLink) -> dict[str, Any]:
    return {**shapes.link(link), "customer_id": link.customer_id}


def requests(request: HttpRequest) -> object:
    return {"data": [shapes.logged_request(entry) for entry in world.requests]}


def deliveries(request: HttpRequest) -> object:
    """List the deliveries; ``?settled=n&timeout=s`` first waits until n (of any event) are over."""
    event = query(request, "event", fields.text)
    wanted = int(query(request, "settled", _whole) or 0)
    timeout = min(int(query(request, "timeout", _whole) or 10), 60)

    sender.wait(lambda: world.settled >= wanted, timeout)
    rows = [row for row in world.deliveries.values() if event in (None, row.event)]
    return {"data": [shapes.delivery(row) for row in rows]}


def _whole(name: str, value: object) -> int:
    return fields.count(name, int(str(fields.matching(r"[0-9]{1,9}", "a number")(name, value))))
