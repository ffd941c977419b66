"""Customers and their setup links. ``urls`` names the modules of the other endpoints."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest

from . import fields
from .fields import Invalid
from .hosted import HEADINGS_BY_LANGUAGE
from .numbers import start_teardown
from .state import ALL_CONNECTION_TYPES, Customer, find, find_customer, store
from .web import SandboxView, page_of, query, read_wrapped

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
    "allowed_origins": fields.list_of(fields.origin),
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
    "status": fields.choice("active", "expired", "revoked"),
}
LINK_CREATE_SPEC: fields.Spec = {
    **LINK_SPEC,
    "meta_billing_mode": fields.choice(*BILLING_MODE_NAMES),
    "reconnect_phone_number": fields.nullable(fields.phone_digits),
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
        return {"data": find_customer(customer_id).as_json()}

    def patch(self, request: HttpRequest, customer_id: str) -> object:
        customer = find_customer(customer_id)
        values = fields.read(CUSTOMER_SPEC, read_wrapped(request, "customer"))
        _check_external_id(values, customer_id)
        customer.change(values)
        return {"data": customer.as_json()}

    def delete(self, request: HttpRequest, customer_id: str) -> object:
        customer = find_customer(customer_id)
        for number in store.numbers().values():
            if number.customer_id == customer_id:
                start_teardown(number)
        store.remove_customer(customer)
        return 204, None


# Setup links


class SetupLinksView(SandboxView):
    def get(self, request: HttpRequest, customer_id: str) -> object:
        find_customer(customer_id)
        rows = store.links_of(customer_id)
        rows.sort(key=lambda link: link.created_at, reverse=True)
        if status := query(request, "status", fields.choice(*LINK_STATUSES)):
            rows = [row for row in rows if row.current_status == status]
        return page_of(request, rows)

    def post(self, request: HttpRequest, customer_id: str) -> object:
        customer = find_customer(customer_id)
        data = read_wrapped(request, "setup_link", may_be_empty=True)
        values = fields.read(LINK_CREATE_SPEC, data)
        countries = values.get("phone_number_country_isos") or ["US"]
        if values.get("phone_number_area_code") and "US" not in countries:
            raise Invalid("phone_number_area_code is only supported for US phone numbers")
        own_types: list[str] = []
        if values.get("reconnect_phone_number"):
            own_types = _types_of_number(customer, values["reconnect_phone_number"])
            values.setdefault("allowed_connection_types", own_types)
        _complete_options(values, own_types)
        link = store.add_link(customer, values)
        return 201, {"data": {**link.as_json(), "token": link.token}}


def _types_of_number(customer: Customer, phone_number: str) -> list[str]:
    """Return the connection types that a link which reconnects this number can have."""
    number = store.number_by_digits(phone_number)
    if number is None or number.customer_id != customer.id or not number.is_production:
        raise Invalid(
            "reconnect_phone_number must match an existing WhatsApp config for this customer"
        )
    return [number.connection_type]


def _complete_options(values: dict[str, Any], own_types: list[str]) -> None:
    """Refuse what a link that reconnects a number cannot have, and replace empty lists by defaults.

    ``own_types`` are the connection types of the number; none if the link reconnects none.
    """
    if own_types and values.get("provision_phone_number"):
        raise Invalid("provision_phone_number can't be combined with reconnect_phone_number")
    defaults = {
        "allowed_connection_types": own_types or [*ALL_CONNECTION_TYPES],
        "phone_number_country_isos": ["US"],
    }
    for name, default in defaults.items():
        if name in values:
            values[name] = values[name] or default
    if own_types and values.get("allowed_connection_types", own_types) != own_types:
        raise Invalid("allowed_connection_types must be that of reconnect_phone_number")


class SetupLinkView(SandboxView):
    def patch(self, request: HttpRequest, customer_id: str, setup_link_id: str) -> object:
        """Change the link; one that becomes active again revokes the customer's others."""
        find_customer(customer_id)
        links = {link.id: link for link in store.links_of(customer_id)}
        link = find(links, setup_link_id, "Setup link")
        values = fields.read(LINK_PATCH_SPEC, read_wrapped(request, "setup_link"))
        if link.status == "used" and "status" in values:
            raise Invalid("status can't be changed: the setup link was used")
        _complete_options(
            values, link.allowed_connection_types if link.reconnect_phone_number else []
        )
        before = link.current_status
        link.change(values)
        if before != "active" and link.current_status == "active":
            store.revoke_others(link)
        return {"data": link.as_json()}
