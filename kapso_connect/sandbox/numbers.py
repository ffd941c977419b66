"""Phone numbers: listed, changed, removed, and connected with Meta's credentials."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest

from . import fields, payloads
from .fields import ApiError, Invalid
from .state import PhoneNumber, find_customer, find_number, store
from .web import SandboxView, flag, page_of, query, read_wrapped
from .webhooks import sender

NUMBER_KINDS = ("production", "sandbox")
CREDENTIALS = ("phone_number_id", "business_account_id", "access_token")

NUMBER_SPEC: fields.Spec = {
    "name": fields.non_blank,
    "kind": fields.choice(*NUMBER_KINDS),
    "phone_number_id": fields.meta_id,
    "business_account_id": fields.meta_id,
    "access_token": fields.non_empty,
    "webhook_verify_token": fields.nullable(fields.text),
    "webhook_destination_url": fields.nullable(fields.url),
    "inbound_processing_enabled": fields.boolean,
    "calls_enabled": fields.boolean,
}
SHOWN_FIELDS = (
    "name",
    "kind",
    "business_account_id",
    "inbound_processing_enabled",
    "calls_enabled",
)


class PhoneNumbersView(SandboxView):
    def get(self, request: HttpRequest) -> object:
        rows = list(reversed(store.numbers().values()))
        rows = [row for row in rows if not store.is_lagging(row.phone_number_id)]
        checks = {"phone_number_id": fields.text, "business_account_id": fields.text}
        for name, check in {**checks, "customer_id": fields.uuid}.items():
            if value := query(request, name, check):
                rows = [row for row in rows if getattr(row, name) == value]
        if part := query(request, "name_contains"):
            rows = [row for row in rows if part.lower() in row.name.lower()]
        enabled = flag(request, "messaging_enabled")
        if enabled is not None:
            rows = [row for row in rows if (row.status == "CONNECTED") == enabled]
        return page_of(request, rows)


class PhoneNumberView(SandboxView):
    def get(self, request: HttpRequest, phone_number_id: str) -> object:
        return {"data": find_number(phone_number_id).as_json()}

    def patch(self, request: HttpRequest, phone_number_id: str) -> object:
        number = find_number(phone_number_id)
        change_number(number, read_wrapped(request, "whatsapp_phone_number"))
        return {"data": number.as_json()}

    def delete(self, request: HttpRequest, phone_number_id: str) -> object:
        start_teardown(find_number(phone_number_id))
        return 204, None


def start_teardown(number: PhoneNumber) -> None:
    """Start to remove a number. The webhook is sent at once; it stays readable a bit longer."""
    if store.tear_down_number(number):
        sender.emit(payloads.DELETED_EVENT, payloads.build(payloads.DELETED_EVENT, number))


class CustomerNumbersView(SandboxView):
    def post(self, request: HttpRequest, customer_id: str) -> object:
        """Connect a number with credentials of Meta's; any that look like some are accepted."""
        customer = find_customer(customer_id)
        values = fields.read(NUMBER_SPEC, read_wrapped(request, "whatsapp_phone_number"))
        for name in ("name", *CREDENTIALS):
            if name not in values:
                raise Invalid(f"Validation failed: {name} can't be blank")
        _check_kind(values.get("kind", "production"), values)
        if values["phone_number_id"] in store.numbers():
            raise ApiError(409, f"Phone number {values['phone_number_id']} is connected already")
        number = store.add_number(
            phone_number_id=values["phone_number_id"],
            customer_id=customer.id,
            verified_name=values["name"],
            **_shown(values),
        )
        sender.emit(payloads.CREATED_EVENT, payloads.build(payloads.CREATED_EVENT, number))
        return 201, {"data": number.as_json()}


def change_number(number: PhoneNumber, data: dict[str, Any]) -> None:
    """Change a number as a client asks for. Raise ApiError."""
    values = fields.read(NUMBER_SPEC, data)
    kind = values.get("kind", number.kind)
    if kind != number.kind:
        for name in CREDENTIALS:
            if name not in values:
                raise Invalid(f"Validation failed: {name} can't be blank for a {kind} number")
    _check_kind(kind, values)
    new_id = values.get("phone_number_id", number.phone_number_id)
    if new_id != number.phone_number_id:
        if new_id in store.numbers():
            raise Invalid("Validation failed: phone_number_id has already been taken")
        store.change_number_id(number, new_id)
    changes = _shown(values)
    if "access_token" in values:
        changes["access_error"] = ""
    number.change(changes)


def _check_kind(kind: str, values: dict[str, Any]) -> None:
    """Refuse real credentials of a sandbox number, and the sandbox's of a real one."""
    for name in CREDENTIALS:
        if name in values and (values[name] == "sandbox") != (kind == "sandbox"):
            must = "must be" if kind == "sandbox" else "can't be"
            raise Invalid(f'{name} {must} "sandbox" for a {kind} number')


def _shown(values: dict[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in SHOWN_FIELDS if name in values}
