"""The Platform API under ``/platform/v1``: the endpoints of Kapso's contract, and no others."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.http import HttpRequest

from . import fields, payloads
from .fields import ApiError, Invalid
from .hosted import HEADINGS_BY_LANGUAGE
from .numbers import change_number
from .state import ALL_CONNECTION_TYPES, PhoneNumber, find, now, store
from .web import SandboxView, page_of, query, read_wrapped
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

    def patch(self, request: HttpRequest, phone_number_id: str) -> object:
        number = find(store.numbers(), phone_number_id, "Phone number")
        change_number(number, read_wrapped(request, "whatsapp_phone_number"))
        return {"data": number.as_json()}

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
