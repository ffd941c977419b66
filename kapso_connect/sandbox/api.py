"""The Platform API under ``/platform/v1``: the endpoints of Kapso's contract, and no others."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.http import HttpRequest

from . import fields, payloads
from .fields import ApiError, Invalid
from .hosted import HEADINGS_BY_LANGUAGE
from .state import ALL_CONNECTION_TYPES, Delivery, PhoneNumber, Webhook, find, now, store
from .web import SandboxView, page_of, query, read_object, read_wrapped
from .webhooks import sender

LINK_STATUSES = ("active", "used", "expired", "revoked")
BILLING_MODE_NAMES = ("customer_managed", "partner_managed")
THEME_COLOR_NAMES = (
    "primary_color",
    "primary_foreground_color",
    "background_color",
    "text_color",
    "muted_text_color",
    "card_color",
    "muted_color",
    "border_color",
    "secondary_color",
    "secondary_foreground_color",
    "destructive_color",
    "destructive_foreground_color",
)
HEALTH_CACHE = timedelta(minutes=3)
HEALTH_LIMITS = ((5, timedelta(seconds=1)), (60, timedelta(minutes=1)))


def _theme(name: str, value: object) -> dict[str, Any]:
    theme = fields.mapping(name, value)
    return {c: fields.hex_colour(f"{name}.{c}", theme[c]) for c in THEME_COLOR_NAMES if c in theme}


def _event(name: str, value: object) -> str:
    event = fields.text(name, value)
    if not payloads.is_known(event):
        raise Invalid(f"{name} is not a known event: {event}")
    return event


def _headers(name: str, value: object) -> dict[str, str]:
    token = fields.pattern(r"[A-Za-z0-9-]{1,100}", "made of header names")
    headers = fields.mapping(name, value)
    return {token(name, key): fields.printable(name, item) for key, item in headers.items()}


CUSTOMER_SPEC: fields.Spec = {
    "name": fields.non_blank,
    "external_customer_id": fields.nullable(fields.non_blank),
}
LINK_SPEC: fields.Spec = {
    "success_redirect_url": fields.nullable(fields.url),
    "failure_redirect_url": fields.nullable(fields.url),
    "allowed_origins": fields.list_of(fields.url),
    "provision_phone_number": fields.boolean,
    "phone_number_area_code": fields.nullable(fields.pattern(r"[0-9]{3}", "three digits")),
    "allowed_connection_types": fields.list_of(fields.choice(*ALL_CONNECTION_TYPES)),
    "theme_config": fields.nullable(_theme),
    "phone_number_country_isos": fields.list_of(fields.pattern(r"[A-Z]{2}", "like US")),
    "language": fields.nullable(fields.choice(*HEADINGS_BY_LANGUAGE)),
}
LINK_PATCH_SPEC: fields.Spec = {
    **LINK_SPEC,
    "expires_at": fields.nullable(fields.date_time),
    "status": fields.choice(*LINK_STATUSES),
}
LINK_CREATE_SPEC: fields.Spec = {
    **LINK_SPEC,
    "meta_billing_mode": fields.choice(*BILLING_MODE_NAMES),
    "reconnect_phone_number": fields.nullable(fields.e164),
}
WEBHOOK_SPEC: fields.Spec = {
    "url": fields.url,
    "phone_number_id": fields.digits,
    "kind": fields.choice("kapso", "meta"),
    "secret_key": fields.nullable(fields.text),
    "active": fields.boolean,
    "events": fields.list_of(_event),
    "headers": fields.nullable(_headers),
    "payload_version": fields.nullable(fields.choice("v1", "v2")),
    "buffer_enabled": fields.boolean,
    "buffer_window_seconds": fields.nullable(fields.count),
    "max_buffer_size": fields.nullable(fields.count),
    "buffer_events": fields.list_of(_event),
    "inactivity_minutes": fields.nullable(fields.count),
}


# Customers


def _check_external_id(values: dict[str, Any], customer_id: str = "") -> None:
    """Refuse an external id that another customer has."""
    external_id = values.get("external_customer_id")
    other = store.customer_by_external_id(external_id) if external_id is not None else None
    if other is not None and other.id != customer_id:
        raise Invalid("Validation failed: external_customer_id has already been taken")


class CustomersView(SandboxView):
    def get(self, request: HttpRequest) -> object:
        rows = list(reversed(store.customers.values()))
        if external_id := query(request, "external_customer_id"):
            rows = [row for row in rows if row.external_customer_id == external_id]
        if part := query(request, "name_contains"):
            rows = [row for row in rows if part.lower() in row.name.lower()]
        return page_of(request, rows)

    def post(self, request: HttpRequest) -> object:
        values = fields.read(CUSTOMER_SPEC, read_wrapped(request, "customer"))
        if "name" not in values:
            raise Invalid("Validation failed: name can't be blank")
        _check_external_id(values)
        return 201, {"data": store.add_customer(**values).as_json()}


class CustomerView(SandboxView):
    def get(self, request: HttpRequest, customer_id: str) -> object:
        return {"data": find(store.customers, customer_id, "Customer").as_json()}

    def patch(self, request: HttpRequest, customer_id: str) -> object:
        customer = find(store.customers, customer_id, "Customer")
        values = fields.read(CUSTOMER_SPEC, read_wrapped(request, "customer"))
        _check_external_id(values, customer_id)
        customer.change(values)
        return {"data": customer.as_json()}

    def delete(self, request: HttpRequest, customer_id: str) -> object:
        customer = find(store.customers, customer_id, "Customer")
        for number in store.numbers().values():
            if number.customer_id == customer_id:
                start_teardown(number)
        store.remove_customer(customer)
        return 204, None


# Setup links


class SetupLinksView(SandboxView):
    def get(self, request: HttpRequest, customer_id: str) -> object:
        find(store.customers, customer_id, "Customer")
        rows = store.links_of(customer_id)
        rows.sort(key=lambda link: link.created_at, reverse=True)
        if status := query(request, "status", fields.choice(*LINK_STATUSES)):
            rows = [row for row in rows if row.current_status == status]
        return page_of(request, rows)

    def post(self, request: HttpRequest, customer_id: str) -> object:
        customer = find(store.customers, customer_id, "Customer")
        values = fields.read(LINK_CREATE_SPEC, read_wrapped(request, "setup_link"))
        countries = values.get("phone_number_country_isos") or ["US"]
        if values.get("phone_number_area_code") and "US" not in countries:
            raise Invalid("phone_number_area_code is only supported for US phone numbers")
        if values.get("reconnect_phone_number"):
            _apply_reconnect_rules(values)
        for name in ("allowed_connection_types", "phone_number_country_isos"):
            if values.get(name) == []:
                del values[name]  # an empty list means the default
        link = store.add_link(customer, values)
        return 201, {"data": {**link.as_json(), "token": link.token}}


def _apply_reconnect_rules(values: dict[str, Any]) -> None:
    if "allowed_connection_types" in values:
        raise Invalid("allowed_connection_types can't be combined with reconnect_phone_number")
    values["provision_phone_number"] = False
    number = store.number_by_digits(values["reconnect_phone_number"].lstrip("+"))
    if number:
        kept = "coexistence" if number.is_coexistence else "dedicated"
        values["allowed_connection_types"] = [kept]


class SetupLinkView(SandboxView):
    def patch(self, request: HttpRequest, customer_id: str, setup_link_id: str) -> object:
        """Change the link; one that becomes active again revokes the customer's others."""
        find(store.customers, customer_id, "Customer")
        links = {link.id: link for link in store.links_of(customer_id)}
        link = find(links, setup_link_id, "Setup link")
        values = fields.read(LINK_PATCH_SPEC, read_wrapped(request, "setup_link"))
        if link.status == "used" and values.get("status", "used") != "used":
            raise Invalid("status can't be changed: the setup link was used")
        before = link.current_status
        link.change(values)
        if before != "active" and link.current_status == "active":
            store.revoke_others(link)
        return {"data": link.as_json()}


# Phone numbers


class PhoneNumbersView(SandboxView):
    def get(self, request: HttpRequest) -> object:
        rows = list(reversed(store.numbers().values()))
        rows = [row for row in rows if not store.is_lagging(row.phone_number_id)]
        for name in ("phone_number_id", "business_account_id", "customer_id"):
            if value := query(request, name):
                rows = [row for row in rows if getattr(row, name) == value]
        if part := query(request, "name_contains"):
            rows = [row for row in rows if part.lower() in row.name.lower()]
        if enabled := query(request, "messaging_enabled", fields.choice("true", "false")):
            rows = [row for row in rows if (row.status == "CONNECTED") == (enabled == "true")]
        return page_of(request, rows)


class PhoneNumberView(SandboxView):
    def get(self, request: HttpRequest, phone_number_id: str) -> object:
        return {"data": find(store.numbers(), phone_number_id, "Phone number").as_json()}

    def delete(self, request: HttpRequest, phone_number_id: str) -> object:
        start_teardown(find(store.numbers(), phone_number_id, "Phone number"))
        return 204, None


def start_teardown(number: PhoneNumber) -> None:
    """Start to remove a number. The webhook is sent at once; it stays readable a bit longer."""
    if store.tear_down_number(number):
        sender.emit(payloads.DELETED_EVENT, payloads.build(payloads.DELETED_EVENT, number))


class HealthView(SandboxView):
    def get(self, request: HttpRequest, phone_number_id: str) -> object:
        number = find(store.numbers(), phone_number_id, "Phone number")
        _limit_health_calls()
        if number.health is None or now() - number.health["timestamp"] >= HEALTH_CACHE:
            number.health = _check_health(number)
        return number.health


def _limit_health_calls() -> None:
    calls, at = store.health_calls, now()
    for limit, window in HEALTH_LIMITS:
        if len(calls) >= limit and calls[-limit] + window > at:
            wait = (calls[-limit] + window - at).total_seconds()
            headers = {"Retry-After": str(int(wait) + 1)}
            raise ApiError(429, "Rate limit exceeded. Try again later.", headers)
    calls.append(at)


def _check_health(number: PhoneNumber) -> dict[str, Any]:
    connected = number.status == "CONNECTED"
    access: dict[str, Any] = {"passed": connected, "details": {"status": number.status}}
    if not connected:
        access["error"] = f"The phone number is {number.status}"
    quality = {
        "passed": number.quality_rating != "RED",
        "details": {"rating": number.quality_rating},
    }
    checks = {"phone_number_access": access, "quality_rating": quality}
    status = "unhealthy" if not connected else "healthy" if quality["passed"] else "degraded"
    return {"status": status, "timestamp": now(), "error": access.get("error"), "checks": checks}


# Project webhooks


class WebhooksView(SandboxView):
    def get(self, request: HttpRequest) -> object:
        rows = list(reversed(store.webhooks.values()))
        if kind := query(request, "kind", fields.choice("kapso", "meta")):
            rows = [row for row in rows if row.kind == kind]
        return page_of(request, rows)

    def post(self, request: HttpRequest) -> object:
        values = fields.read(WEBHOOK_SPEC, read_wrapped(request, "whatsapp_webhook"))
        if "url" not in values:
            raise Invalid("Validation failed: url can't be blank")
        if "phone_number_id" in values:
            find(store.numbers(), values["phone_number_id"], "Phone number")
        webhook = Webhook(project_id=store.project_id, **values)
        store.webhooks[webhook.id] = webhook
        return 201, {"data": webhook.as_json()}


class WebhookView(SandboxView):
    def get(self, request: HttpRequest, webhook_id: str) -> object:
        return {"data": find(store.webhooks, webhook_id, "Webhook").as_json()}

    def patch(self, request: HttpRequest, webhook_id: str) -> object:
        webhook = find(store.webhooks, webhook_id, "Webhook")
        values = fields.read(WEBHOOK_SPEC, read_wrapped(request, "whatsapp_webhook"))
        webhook.change(values)
        if values.get("active"):
            webhook.outcomes.clear()  # reactivating a paused webhook starts the count again
        return {"data": webhook.as_json()}

    def delete(self, request: HttpRequest, webhook_id: str) -> object:
        find(store.webhooks, webhook_id, "Webhook")
        del store.webhooks[webhook_id]
        return 204, None


class WebhookTestView(SandboxView):
    def post(self, request: HttpRequest, webhook_id: str) -> object:
        send_test_delivery(webhook_id, read_object(request).get("event_type"))
        return {"data": {"success": True}}


def send_test_delivery(webhook_id: str, event_type: object) -> list[Delivery]:
    webhook = find(store.webhooks, webhook_id, "Webhook")
    event = _event("event_type", event_type or payloads.CREATED_EVENT)
    sample = PhoneNumber("123456789012345", "+1 555-123-4567", business_account_id="0" * 15)
    deliveries = sender.emit(event, payloads.build(event, sample), only=webhook)
    for delivery in deliveries:
        delivery.forced = True
    return deliveries
