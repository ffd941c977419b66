"""The Platform API under ``/platform/v1``: the endpoints of Kapso's contract, and no others."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.http import HttpRequest

from . import fields, payloads, serializers
from .fields import ApiError, Invalid
from .hosted import HEADINGS_BY_LANGUAGE
from .state import (
    ALL_CONNECTION_TYPES,
    Customer,
    PhoneNumber,
    SetupLink,
    Webhook,
    apply,
    newest_first,
    now,
    store,
)
from .web import page_of, query, read_object, read_wrapped, true_or_false
from .webhooks import sender

LINK_STATUSES = ("active", "used", "expired", "revoked")
BILLING_MODE_NAMES = ("customer_managed", "partner_managed")
THEME_COLOR_NAMES = tuple(
    f"{part}_color"
    for part in (
        *("primary", "primary_foreground", "background", "text", "muted_text", "card", "muted"),
        *("border", "secondary", "secondary_foreground", "destructive", "destructive_foreground"),
    )
)
HEALTH_CACHE = timedelta(minutes=3)
HEALTH_LIMITS = ((timedelta(seconds=1), 5), (timedelta(minutes=1), 60))


def _theme(name: str, value: object) -> dict[str, Any]:
    theme = fields.mapping(name, value)
    return {c: fields.hex_colour(f"{name}.{c}", theme[c]) for c in THEME_COLOR_NAMES if c in theme}


def _event(name: str, value: object) -> str:
    if not payloads.is_known(fields.text(name, value)):
        raise Invalid(f"{name} is not a known event: {value}")
    return fields.text(name, value)


def _headers(name: str, value: object) -> dict[str, str]:
    token = fields.pattern(r"[A-Za-z0-9-]{1,100}", "made of header names")
    content = fields.pattern(r"[ -~]*", "made of printable ASCII values")
    headers = fields.mapping(name, value)
    return {token(name, key): content(name, item) for key, item in headers.items()}


CUSTOMER_SPEC: fields.Spec = {
    "name": fields.non_blank,
    "external_customer_id": fields.nullable(fields.non_blank),
}
LINK_PATCH_SPEC: fields.Spec = {
    "success_redirect_url": fields.nullable(fields.url),
    "failure_redirect_url": fields.nullable(fields.url),
    "allowed_origins": fields.list_of(fields.url),
    "provision_phone_number": fields.boolean,
    "phone_number_area_code": fields.nullable(fields.pattern(r"[0-9]{3}", "three digits")),
    "expires_at": fields.nullable(fields.date_time),
    "status": fields.choice(*LINK_STATUSES),
    "allowed_connection_types": fields.list_of(fields.choice(*ALL_CONNECTION_TYPES)),
    "theme_config": fields.nullable(_theme),
    "phone_number_country_isos": fields.list_of(fields.pattern(r"[A-Z]{2}", "like US")),
    "language": fields.nullable(fields.choice(*HEADINGS_BY_LANGUAGE)),
}
LINK_CREATE_SPEC: fields.Spec = {
    **{
        name: check
        for name, check in LINK_PATCH_SPEC.items()
        if name not in ("expires_at", "status")
    },
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


def find_customer(customer_id: str) -> Customer:
    if customer_id not in store.customers:
        raise ApiError(404, "Customer not found")
    return store.customers[customer_id]


def _check_external_id(external_id: str | None, of: Customer | None) -> None:
    other = None if external_id is None else store.customer_by_external_id.get(external_id)
    if other is not None and other is not of:
        raise Invalid("Validation failed: external_customer_id has already been taken")


def list_customers(request: HttpRequest) -> object:
    rows = list(reversed(store.customers.values()))
    if external_id := query(request, "external_customer_id", fields.text):
        found = store.customer_by_external_id.get(external_id)
        rows = [found] if found else []
    if part := query(request, "name_contains", fields.text):
        rows = [row for row in rows if part.lower() in row.name.lower()]
    return page_of(request, rows, serializers.customer)


def create_customer(request: HttpRequest) -> object:
    values = fields.read(CUSTOMER_SPEC, read_wrapped(request, "customer"))
    if "name" not in values:
        raise Invalid("Validation failed: name can't be blank")
    _check_external_id(values.get("external_customer_id"), None)
    return 201, {"data": serializers.customer(store.add_customer(**values))}


def get_customer(request: HttpRequest, customer_id: str) -> object:
    return {"data": serializers.customer(find_customer(customer_id))}


def update_customer(request: HttpRequest, customer_id: str) -> object:
    customer = find_customer(customer_id)
    values = fields.read(CUSTOMER_SPEC, read_wrapped(request, "customer"))
    _check_external_id(values.get("external_customer_id"), customer)
    store.change_customer(customer, values)
    return {"data": serializers.customer(customer)}


def delete_customer(request: HttpRequest, customer_id: str) -> object:
    customer = find_customer(customer_id)
    for number in store.numbers_of(customer):
        start_teardown(number)
    store.remove_customer(customer)
    return 204, None


# Setup links


def list_links(request: HttpRequest, customer_id: str) -> object:
    rows = newest_first(store.links_of.get(find_customer(customer_id).id, []))
    if status := query(request, "status", fields.choice(*LINK_STATUSES)):
        rows = [row for row in rows if row.current_status == status]
    return page_of(request, rows, serializers.link)


def create_link(request: HttpRequest, customer_id: str) -> object:
    customer = find_customer(customer_id)
    values = fields.read(LINK_CREATE_SPEC, read_wrapped(request, "setup_link"))
    _check_area_code(values)
    if values.get("reconnect_phone_number"):
        _apply_reconnect_rules(values)
    for name in ("allowed_connection_types", "phone_number_country_isos"):
        if values.get(name) == []:
            del values[name]  # an empty list means the default
    link = store.add_link(customer, values)
    return 201, {"data": {**serializers.link(link), "token": link.token}}


def _check_area_code(values: dict[str, Any]) -> None:
    countries = values.get("phone_number_country_isos") or ["US"]
    if values.get("phone_number_area_code") and "US" not in countries:
        raise Invalid("phone_number_area_code is only supported for US phone numbers")


def _apply_reconnect_rules(values: dict[str, Any]) -> None:
    if "allowed_connection_types" in values:
        raise Invalid("allowed_connection_types can't be combined with reconnect_phone_number")
    values["provision_phone_number"] = False
    number = store.number_by_digits(values["reconnect_phone_number"].lstrip("+"))
    if number:
        kept = "coexistence" if number.is_coexistence else "dedicated"
        values["allowed_connection_types"] = [kept]


def update_link(request: HttpRequest, customer_id: str, setup_link_id: str) -> object:
    customer = find_customer(customer_id)
    link = store.links.get(setup_link_id)
    if link is None or link.customer_id != customer.id:
        raise ApiError(404, "Setup link not found")
    change_link(link, fields.read(LINK_PATCH_SPEC, read_wrapped(request, "setup_link")))
    return {"data": serializers.link(link)}


def change_link(link: SetupLink, values: dict[str, Any]) -> None:
    """Apply a PATCH; a link that becomes active again revokes the customer's other links."""
    if link.status == "used" and values.get("status", "used") != "used":
        raise Invalid("status can't be changed: the setup link was used")
    before = link.current_status
    apply(link, values)
    if before != "active" and link.current_status == "active":
        store.revoke_others(link)


# Phone numbers


def find_number(phone_number_id: str) -> PhoneNumber:
    number = store.numbers().get(phone_number_id)
    if number is None:
        raise ApiError(404, "Phone number not found")
    return number


def list_numbers(request: HttpRequest) -> object:
    rows = list(reversed(store.numbers().values()))
    for name in ("phone_number_id", "business_account_id", "customer_id"):
        if value := query(request, name, fields.text):
            rows = [row for row in rows if getattr(row, name) == value]
    if part := query(request, "name_contains", fields.text):
        rows = [row for row in rows if part.lower() in row.name.lower()]
    enabled = query(request, "messaging_enabled", true_or_false)
    if enabled is not None:
        rows = [row for row in rows if (row.status == "CONNECTED") == enabled]
    return page_of(request, rows, serializers.number)


def get_number(request: HttpRequest, phone_number_id: str) -> object:
    return {"data": serializers.number(find_number(phone_number_id))}


def delete_number(request: HttpRequest, phone_number_id: str) -> object:
    start_teardown(find_number(phone_number_id))
    return 204, None


def start_teardown(number: PhoneNumber) -> None:
    """Start to remove a number. The webhook is sent at once; it stays readable a bit longer."""
    if store.tear_down_number(number):
        sender.emit(payloads.DELETED_EVENT, payloads.build(payloads.DELETED_EVENT, number))


def number_health(request: HttpRequest, phone_number_id: str) -> object:
    number = find_number(phone_number_id)
    _limit_health_calls(now())
    checked_at, health = store.health.get(phone_number_id, (None, {}))
    if checked_at is None or now() - checked_at >= HEALTH_CACHE:
        health = _check_health(number)
        store.health[phone_number_id] = (now(), health)
    return health


def _limit_health_calls(at: datetime) -> None:
    calls = store.health_calls
    while calls and at - calls[0] >= HEALTH_LIMITS[-1][0]:
        calls.popleft()
    for window, limit in HEALTH_LIMITS:
        recent = [call for call in calls if at - call < window]
        if len(recent) >= limit:
            wait = (recent[0] + window - at).total_seconds()
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


def find_webhook(webhook_id: str) -> Webhook:
    if webhook_id not in store.webhooks:
        raise ApiError(404, "Webhook not found")
    return store.webhooks[webhook_id]


def list_webhooks(request: HttpRequest) -> object:
    rows = newest_first(store.webhooks.values())
    if kind := query(request, "kind", fields.choice("kapso", "meta")):
        rows = [row for row in rows if row.kind == kind]
    return page_of(request, rows, serializers.webhook)


def create_webhook(request: HttpRequest) -> object:
    values = fields.read(WEBHOOK_SPEC, read_wrapped(request, "whatsapp_webhook"))
    if "url" not in values:
        raise Invalid("Validation failed: url can't be blank")
    if "phone_number_id" in values:
        find_number(values["phone_number_id"])
    webhook = Webhook(project_id=store.project_id, **values)
    store.webhooks[webhook.id] = webhook
    return 201, {"data": serializers.webhook(webhook)}


def get_webhook(request: HttpRequest, webhook_id: str) -> object:
    return {"data": serializers.webhook(find_webhook(webhook_id))}


def update_webhook(request: HttpRequest, webhook_id: str) -> object:
    webhook = find_webhook(webhook_id)
    values = fields.read(WEBHOOK_SPEC, read_wrapped(request, "whatsapp_webhook"))
    apply(webhook, values)
    if values.get("active"):
        webhook.outcomes.clear()  # reactivating a paused webhook starts the count again
    return {"data": serializers.webhook(webhook)}


def delete_webhook(request: HttpRequest, webhook_id: str) -> object:
    find_webhook(webhook_id)
    del store.webhooks[webhook_id]
    return 204, None


def test_webhook(request: HttpRequest, webhook_id: str) -> object:
    webhook = find_webhook(webhook_id)
    event_type = read_object(request).get("event_type") or payloads.CREATED_EVENT
    event = _event("event_type", event_type)
    sample = PhoneNumber("123456789012345", "+1 555-123-4567", business_account_id="0" * 15)
    for delivery in sender.emit(event, payloads.build(event, sample), only=webhook):
        delivery.forced = True
    return {"data": {"success": True}}
