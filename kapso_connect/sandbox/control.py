"""The sandbox's own controls under ``/sandbox/``. Kapso has none of them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import count, islice
from typing import Any

from django.http import HttpRequest

from . import accounts, api, fields, messages, numbers, payloads, subscriptions
from .faults import FAULTS_SPEC, Faults, Rule, read_rule
from .fields import ApiError, Invalid
from .middleware import has_key
from .state import (
    Customer,
    Delivery,
    PhoneNumber,
    SetupLink,
    Webhook,
    find,
    find_customer,
    find_number,
    store,
)
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
    "phone_number_id": fields.nullable(fields.meta_id),
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
MESSAGE_SPEC: fields.Spec = {"from": fields.text, "body": fields.text}
ACCOUNT_SPEC: fields.Spec = {"funding": fields.choice(*accounts.FUNDING_STATUSES)}
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
DEVICE_CHANGE_SPEC: fields.Spec = {"seconds": fields.seconds}
DEVICE_CHANGE_SECONDS = 60

Data = Mapping[str, Any]
"""What a control is called with, as it came; each control checks it."""


# What can be done: by the views below, and by the forms of the pages


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


def change_faults(changes: Data) -> Faults:
    """Set the faults that are named; the others stay as they are."""
    return _set_faults(replace(store.faults, **fields.read_strictly(FAULTS_SPEC, changes)))


def add_rule(data: Data) -> Faults:
    """Add a rule to those for requests to the API, behind them."""
    rule = read_rule("rule", dict(data))
    return _set_faults(replace(store.faults, api=[*store.faults.api, rule]))


def remove_rule(rule: Rule) -> Faults:
    rules = [other for other in store.faults.api if other is not rule]
    return _set_faults(replace(store.faults, api=rules))


def clear_faults() -> Faults:
    return _set_faults(Faults())


def _set_faults(faults: Faults) -> Faults:
    """Replace the faults, and send the deliveries that the old ones held back."""
    before = store.faults
    if (before.batch, before.reorder) != (faults.batch, faults.reorder):
        sender.release()
    store.faults = faults
    store.lock.notify_all()  # requests that hang go on
    return faults


def change_rate_limit(values: Data) -> dict[str, int]:
    """Set how many requests a minute each key has, and count anew; 0 stands for no limit."""
    data = fields.read_strictly(RATE_LIMIT_SPEC, values, required="limit")
    store.rate_limit = data["limit"]
    store.requests_by_key.clear()
    return data


def change_default_webhook(values: Data) -> Webhook | None:
    """Replace the webhook that gets every event; the URL None removes it."""
    data = fields.read_strictly(DEFAULT_WEBHOOK_SPEC, values, required="url")
    set_default_webhook(data["url"], data.get("secret", store.options.webhook_secret))
    return store.webhooks.get(store.default_webhook_id)


def seed(values: Data) -> dict[str, int]:
    """Create customers ``<prefix>-1`` … ``<prefix>-n``, each with numbers; return counts."""
    data = fields.read_strictly(SEED_SPEC, values)
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
    return {"customers": wanted, "phone_numbers": wanted * numbers_each}


def add_number(values: Data) -> PhoneNumber:
    data = fields.read_strictly(NEW_NUMBER_SPEC, values)
    announce = data.pop("webhook", False)
    owner = _owner(data.pop("customer_id", None), data.pop("external_customer_id", None))
    return _add_number(owner, data, announce=announce)


def _owner(customer_id: str | None, external_id: str | None) -> Customer | None:
    if customer_id is not None:
        return find_customer(customer_id)
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


def change_number(phone_number_id: str, values: Data) -> PhoneNumber:
    """Change any field of a number; no webhook is sent."""
    number = find_number(phone_number_id)
    data = fields.read_strictly(NUMBER_PATCH_SPEC, values)
    if data.get("customer_id") is not None:
        find_customer(data["customer_id"])
    number.change(data)
    return number


def delete_number(phone_number_id: str) -> None:
    numbers.start_teardown(find_number(phone_number_id))


def receive_message(phone_number_id: str, values: Data) -> list[Delivery]:
    """Let a person write to a number; return the deliveries to the number's webhooks."""
    number = find_number(phone_number_id)
    data = fields.read_strictly(MESSAGE_SPEC, values, required="from")
    return messages.receive_message(number, data["from"], data.get("body", "Hello"))


def change_account(business_account_id: str, values: Data) -> dict[str, Any]:
    """Set whether Kapso pays for an account, also before the customer has connected."""
    accounts.check_account(business_account_id)
    data = fields.read_strictly(ACCOUNT_SPEC, values, required="funding")
    store.funding[business_account_id] = data["funding"]
    return {"id": business_account_id, **data}


def change_device(phone_number_id: str, values: Data) -> float:
    """Let the customer's phone change: Meta takes the number off the API, and gives it back after
    ``seconds``. Return these."""
    number = find_number(phone_number_id)
    data = fields.read_strictly(DEVICE_CHANGE_SPEC, values)
    seconds: float = data.get("seconds", DEVICE_CHANGE_SECONDS)
    about = {"phone_number_id": phone_number_id}

    def reconnect() -> None:
        with store.lock:
            if store.numbers().get(phone_number_id) is number:
                send_event({"event": payloads.RECONNECTED_EVENT, **about})
                store.changed.set()

    send_event({"event": payloads.OFFBOARDED_EVENT, **about})
    timer = threading.Timer(seconds, reconnect)
    timer.daemon = True
    timer.start()
    return seconds


def change_setup_link(setup_link_id: str, values: Data) -> SetupLink:
    """Change any field of a setup link, also those that Kapso's API cannot change."""
    link = find(store.links, setup_link_id, "Setup link")
    link.change(fields.read_strictly(LINK_SPEC, values))
    return link


def send_event(values: Data) -> tuple[dict[str, Any], list[Delivery]]:
    """Send any event; return its body and the deliveries."""
    data = fields.read_strictly(EVENT_SPEC, values, required="event")
    if "phone_number_id" not in data and "payload" not in data:
        raise Invalid("phone_number_id (a number of the sandbox) or payload is missing")
    only = find(store.webhooks, data["webhook_id"], "Webhook") if "webhook_id" in data else None
    payload = {**_payload_of_number(data), **data.get("payload", {})}
    deliveries = sender.emit(data["event"], payload, key=data.get("idempotency_key"), only=only)
    return payload, deliveries


def _payload_of_number(data: dict[str, Any]) -> dict[str, Any]:
    """Return the body of the event for a number, and change the number as the event says."""
    if "phone_number_id" not in data:
        return {}
    event, number = data["event"], find_number(data["phone_number_id"])
    names = ("legacy", "reason", "initiated_by", "source_event")
    options = {name: data[name] for name in names if name in data}
    if event in payloads.NUMBER_EVENTS:
        return messages.sample(event, number)
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


def resend(delivery_id: str, *, new_key: bool) -> Delivery:
    delivery = find(store.deliveries, delivery_id, "Delivery")
    if delivery.webhook_id not in store.webhooks:
        raise ApiError(409, "The webhook of this delivery was removed")
    return sender.resend(delivery, new_key=new_key)


# The same in JSON


class ReadyView(SandboxView):
    def get(self, request: HttpRequest) -> object:
        """Return whether the sandbox is ready."""
        return {"ready": True}


class ResetView(SandboxView):
    def post(self, request: HttpRequest) -> object:
        """Forget everything but the webhook of the command line."""
        restart()
        return {"reset": True}


class FaultsView(SandboxView):
    def get(self, request: HttpRequest) -> object:
        """Return the faults."""
        return asdict(store.faults)

    def post(self, request: HttpRequest) -> object:
        """Turn faults on or off; those not named stay as they are."""
        return asdict(change_faults(read_object(request)))

    def delete(self, request: HttpRequest) -> object:
        """Turn all faults off, and send what they held back."""
        return asdict(clear_faults())


class RateLimitView(SandboxView):
    def post(self, request: HttpRequest) -> object:
        """Set how many requests a minute each key has; 0 stands for no limit."""
        return change_rate_limit(read_object(request))


class DefaultWebhookView(SandboxView):
    def post(self, request: HttpRequest) -> object:
        """Replace the webhook that gets every event; the URL null removes it."""
        webhook = change_default_webhook(read_object(request))
        return {"webhook": _webhook_json(request, webhook) if webhook else None}


def _webhook_json(request: HttpRequest, webhook: Webhook) -> dict[str, Any]:
    """Return a webhook; its secret only to those who have the API key, as Kapso's API does."""
    shown = webhook.as_json()
    return shown if has_key(request) else {**shown, "secret_key": None}


class WebhookTestView(SandboxView):
    def post(self, request: HttpRequest, webhook_id: str) -> object:
        """Send the test delivery of a webhook, of one of its events."""
        deliveries = subscriptions.send_test_delivery(webhook_id, read_object(request))
        return 201, {"deliveries": [delivery.id for delivery in deliveries]}


class SeedView(SandboxView):
    def post(self, request: HttpRequest) -> object:
        """Create customers, each with numbers."""
        return 201, seed(read_object(request))


class NumbersView(SandboxView):
    def post(self, request: HttpRequest) -> object:
        """Create a number of a customer, or of the project itself."""
        return 201, {"data": add_number(read_object(request)).as_json()}


class NumberView(SandboxView):
    def patch(self, request: HttpRequest, phone_number_id: str) -> object:
        """Change any field of a number; no webhook is sent."""
        return {"data": change_number(phone_number_id, read_object(request)).as_json()}

    def delete(self, request: HttpRequest, phone_number_id: str) -> object:
        """Delete a number, and send the webhook."""
        delete_number(phone_number_id)
        return 204, None


class DeviceChangeView(SandboxView):
    def post(self, request: HttpRequest, phone_number_id: str) -> object:
        """Let the customer's phone change: offboarded now, reconnected after some seconds."""
        return 202, {"seconds": change_device(phone_number_id, read_object(request))}


class MessagesView(SandboxView):
    def post(self, request: HttpRequest, phone_number_id: str) -> object:
        """Let a person write to a number."""
        deliveries = receive_message(phone_number_id, read_object(request))
        return 201, {"deliveries": [delivery.id for delivery in deliveries]}


class AccountView(SandboxView):
    def patch(self, request: HttpRequest, business_account_id: str) -> object:
        """Set whether Kapso pays Meta for a WhatsApp Business account."""
        return {"data": change_account(business_account_id, read_object(request))}


class SetupLinkView(SandboxView):
    def patch(self, request: HttpRequest, setup_link_id: str) -> object:
        """Change any field of a setup link: let it expire, for example."""
        return {"data": change_setup_link(setup_link_id, read_object(request)).as_json()}


class EventsView(SandboxView):
    def post(self, request: HttpRequest) -> object:
        """Send any event; a number that it is about changes as it says."""
        payload, deliveries = send_event(read_object(request))
        return 201, {"payload": payload, "deliveries": [delivery.id for delivery in deliveries]}


class DeliveriesView(SandboxView):
    def get(self, request: HttpRequest) -> object:
        """List them; ``?settled=n&timeout=s`` first waits until n are done."""
        wanted = int(query(request, "settled", whole_number) or 0)
        timeout = min(int(query(request, "timeout", whole_number) or 10), 60)
        store.wait_for(lambda: store.deliveries_done >= wanted, timeout)
        return {"data": [delivery.as_json() for delivery in store.deliveries.values()]}


class ResendView(SandboxView):
    def post(self, request: HttpRequest, delivery_id: str) -> object:
        """Send a delivery again, with its own idempotency key or a new one."""
        data = fields.read_strictly({"new_key": fields.boolean}, read_object(request))
        return 202, {"data": resend(delivery_id, new_key=data.get("new_key", False)).as_json()}


class StateView(SandboxView):
    def get(self, request: HttpRequest) -> object:
        """Return everything that the sandbox holds."""
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
        """Return the latest requests to the API."""
        return {"data": list(store.requests)}
