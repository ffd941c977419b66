"""The health of phone numbers, as Kapso checks it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.http import HttpRequest

from .fields import ApiError
from .limits import count_health_check
from .state import PhoneNumber, now, store
from .web import SandboxView, json_response

HEALTH_CACHE = timedelta(minutes=3)
# How long the answer is held after the first access error, the second in succession, …
ERROR_HOLDS = tuple(timedelta(minutes=minutes) for minutes in (5, 15, 30, 60))
# What numbers in these states at Meta can send.
SENDING_BY_STATUS = {
    "DISCONNECTED": "BLOCKED",
    "BANNED": "BLOCKED",
    "FLAGGED": "LIMITED",
    "RESTRICTED": "LIMITED",
    "RATE_LIMITED": "LIMITED",
}
PAYMENT_ERROR = {
    "error_code": "141006",
    "error_description": "There is an error with the payment method.",
    "possible_solution": "Add a valid payment method to the WhatsApp Business Account at Meta.",
}
ACCOUNT_ERRORS = {
    "whatsapp.account.disabled": (
        "BLOCKED",
        {
            "error_code": "131031",
            "error_description": "Meta has disabled the WhatsApp Business Account.",
            "possible_solution": "Request a review in Meta's Business Support Home.",
        },
    ),
    "whatsapp.account.restricted": (
        "LIMITED",
        {
            "error_code": "131031",
            "error_description": "Meta has restricted the WhatsApp Business Account.",
            "possible_solution": "See Meta's Business Support Home for what is restricted.",
        },
    ),
}


class HealthView(SandboxView):
    def get(self, request: HttpRequest, phone_number_id: str) -> object:
        headers = count_health_check()
        number = store.numbers().get(phone_number_id)
        if number is None:
            raise ApiError(404, "Phone number not found", headers)
        if number.health is None or number.health_until <= now():
            check_number(number, now())
        return json_response(number.health, headers=headers)


def check_number(number: PhoneNumber, at: datetime) -> None:
    """Check the number's health, and keep the answer for as long as Kapso does."""
    if not number.access_error:
        number.access_errors = 0
        number.health_until = at + HEALTH_CACHE
        number.health = _answer(number, at)
        return
    hold = ERROR_HOLDS[min(number.access_errors, len(ERROR_HOLDS) - 1)]
    number.access_errors += 1
    number.health_until = at + hold
    failed = {"passed": False, "error": number.access_error}
    number.health = {
        "status": "error",
        "timestamp": at,
        "retry_after": number.health_until,
        "error": number.access_error,
        "checks": {"phone_number_access": failed},
    }
    if number.is_coexistence:
        number.health["checks"]["token_validity"] = failed


def _answer(number: PhoneNumber, at: datetime) -> dict[str, Any]:
    connection = number.status if number.status in ("CONNECTED", "DISCONNECTED") else "UNKNOWN"
    checks: dict[str, dict[str, Any]] = {
        "phone_number_access": {
            "passed": True,
            "details": {
                "display_phone_number": number.display_phone_number,
                "verified_name": number.verified_name,
                "quality_rating": number.quality_rating,
                "name_status": number.name_status,
            },
        },
        "phone_number_connection": {
            "passed": {"CONNECTED": True, "DISCONNECTED": False}.get(connection),
            "details": {"status": connection},
        },
        "messaging_health": _messaging_health(number),
        "webhook_subscription": {"passed": connection != "DISCONNECTED"},
        "webhook_verified": {"passed": True, "details": {"verified_at": number.created_at}},
    }
    if connection == "DISCONNECTED":
        checks["phone_number_connection"]["error"] = "The phone number is disconnected"
        checks["webhook_subscription"]["error"] = "Meta sends no webhooks for this phone number"
    if number.is_coexistence:
        checks["token_validity"] = {"passed": True}
    failed = {name for name, check in checks.items() if check["passed"] is False}
    blocked = checks["messaging_health"]["overall_status"] == "BLOCKED"
    bad = blocked or connection == "DISCONNECTED"
    status = "unhealthy" if bad else "degraded" if failed else "healthy"
    return {"status": status, "timestamp": at, "checks": checks}


def _messaging_health(number: PhoneNumber) -> dict[str, Any]:
    phone: dict[str, Any] = {"entity_type": "PHONE_NUMBER", "id": number.phone_number_id}
    phone["can_send_message"] = SENDING_BY_STATUS.get(number.status, "AVAILABLE")
    if number.status == "CONNECTED" and number.name_status in ("DECLINED", "PENDING_REVIEW"):
        phone["can_send_message"] = "LIMITED"
        phone["additional_info"] = ["Your display name has not been approved yet."]
    if phone["can_send_message"] != "AVAILABLE" and "additional_info" not in phone:
        phone["errors"] = [
            {
                "error_code": "131031",
                "error_description": f"The phone number is {number.status}.",
                "possible_solution": "See what Meta's WhatsApp Manager says about the number.",
            }
        ]
    entities = [phone]
    if waba := number.business_account_id:
        account: dict[str, Any] = {"entity_type": "WABA", "id": waba}
        account["can_send_message"] = "AVAILABLE"
        if decision := ACCOUNT_ERRORS.get(store.account_events.get(waba, "")):
            account["can_send_message"], error = decision
            account["errors"] = [error]
        elif number.payment_problem:
            account["can_send_message"] = "BLOCKED"
            account["errors"] = [PAYMENT_ERROR]
        entities.append(account)
    found = {entity["can_send_message"] for entity in entities}
    overall = next(level for level in ("BLOCKED", "LIMITED", "AVAILABLE") if level in found)
    return {
        "passed": overall == "AVAILABLE",
        "overall_status": overall,
        "details": {"can_send_message": overall, "entities": entities},
    }
