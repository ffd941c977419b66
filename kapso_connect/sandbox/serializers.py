"""The store's objects as JSON."""

from __future__ import annotations

from typing import Any

from .state import Customer, Delivery, LoggedRequest, PhoneNumber, SetupLink, Webhook, store

LINK_FIELDS = (
    "id",
    "created_at",
    "expires_at",
    "url",
    "success_redirect_url",
    "failure_redirect_url",
    "allowed_origins",
    "allowed_connection_types",
    "meta_billing_mode",
    "theme_config",
    "provision_phone_number",
    "phone_number_area_code",
    "phone_number_country_isos",
    "reconnect_phone_number",
    "language",
    "whatsapp_setup_status",
    "whatsapp_setup_error",
)
NUMBER_FIELDS = (
    "internal_id",
    "phone_number_id",
    "name",
    "business_account_id",
    "is_coexistence",
    "created_at",
    "updated_at",
    "customer_id",
    "display_phone_number",
    "verified_name",
    "quality_rating",
    "code_verification_status",
    "name_status",
    "status",
)
WEBHOOK_FIELDS = (
    "id",
    "url",
    "kind",
    "events",
    "active",
    "created_at",
    "updated_at",
    "project_id",
    "phone_number_id",
    "secret_key",
    "headers",
    "buffer_enabled",
    "buffer_window_seconds",
    "max_buffer_size",
    "buffer_events",
    "inactivity_minutes",
    "payload_version",
)


def _pick(source: object, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names}


def customer(source: Customer) -> dict[str, Any]:
    return _pick(source, ("id", "name", "external_customer_id", "created_at", "updated_at"))


def link(source: SetupLink) -> dict[str, Any]:
    values = {**_pick(source, LINK_FIELDS), "status": source.current_status}
    if source.provisioned_phone_number is not None:
        values["provisioned_phone_number"] = source.provisioned_phone_number
    return values


def number(source: PhoneNumber) -> dict[str, Any]:
    return {
        "id": source.phone_number_id,
        **_pick(source, NUMBER_FIELDS),
        "display_name": source.verified_name,
        "display_phone_number_normalized": source.normalized,
        "inbound_processing_enabled": True,
        "calls_enabled": False,
        "webhook_verified_at": source.created_at,
        "throughput_tier": "STANDARD",
        "whatsapp_business_manager_messaging_limit": "TIER_250",
        "is_official_business_account": False,
        "is_pin_enabled": not source.is_coexistence,
    }


def webhook(source: Webhook) -> dict[str, Any]:
    return _pick(source, WEBHOOK_FIELDS)


def delivery(source: Delivery) -> dict[str, Any]:
    target = store.webhooks.get(source.webhook_id)
    return {
        **_pick(source, ("id", "webhook_id", "event", "idempotency_key", "state", "batch_size")),
        **_pick(source, ("created_at", "next_attempt_at")),
        "url": target.url if target else None,
        "attempts": [vars(attempt) for attempt in source.attempts],
        "body": source.body.decode(),
    }


def logged_request(source: LoggedRequest) -> dict[str, Any]:
    return dict(vars(source))
