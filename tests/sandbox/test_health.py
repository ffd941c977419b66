"""Health checks of numbers, as Kapso answers them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest

from kapso_connect.testing import Sandbox

if TYPE_CHECKING:
    from tests.sandbox.support import Api

pytest_plugins = ("tests.sandbox.support",)

EXPIRED = "The access token has expired"


def check(api: Api, number: dict[str, Any]) -> Any:
    return api("GET", f"/whatsapp/phone_numbers/{number['phone_number_id']}/health").json()


def failed(health: Any) -> set[str]:
    return {name for name, row in health["checks"].items() if row["passed"] is False}


@pytest.mark.parametrize("is_coexistence", [True, False])
def test_a_number_that_works_is_healthy(box: Sandbox, box_api: Api, is_coexistence: bool) -> None:
    number = box.add_number(
        is_coexistence=is_coexistence, quality_rating="YELLOW", business_account_id="42"
    )
    health = check(box_api, number)
    assert health["status"] == "healthy"
    assert set(health) == {"status", "timestamp", "checks"}
    checks = health["checks"]
    assert set(checks) == {
        "phone_number_access",
        "phone_number_connection",
        "messaging_health",
        "webhook_subscription",
        "webhook_verified",
        *(["token_validity"] if is_coexistence else []),
    }
    assert {row["passed"] for row in checks.values()} == {True}
    assert checks["phone_number_access"]["details"]["quality_rating"] == "YELLOW"
    assert checks["phone_number_connection"]["details"] == {"status": "CONNECTED"}
    assert checks["messaging_health"]["overall_status"] == "AVAILABLE"
    assert checks["messaging_health"]["details"]["entities"] == [
        {
            "entity_type": "PHONE_NUMBER",
            "id": number["phone_number_id"],
            "can_send_message": "AVAILABLE",
        },
        {"entity_type": "WABA", "id": "42", "can_send_message": "AVAILABLE"},
    ]


@pytest.mark.parametrize(
    ("fields", "status", "connection", "sending"),
    [
        ({"status": "DISCONNECTED"}, "unhealthy", "DISCONNECTED", "BLOCKED"),
        ({"status": "BANNED"}, "unhealthy", "UNKNOWN", "BLOCKED"),
        ({"status": "FLAGGED"}, "degraded", "UNKNOWN", "LIMITED"),
        ({"status": "MIGRATED"}, "healthy", "UNKNOWN", "AVAILABLE"),
        ({"name_status": "DECLINED"}, "degraded", "CONNECTED", "LIMITED"),
        (
            {"payment_problem": True, "business_account_id": "42"},
            "unhealthy",
            "CONNECTED",
            "BLOCKED",
        ),
    ],
)
def test_what_is_wrong_shows_in_the_status(
    box: Sandbox,
    box_api: Api,
    fields: dict[str, Any],
    status: str,
    connection: str,
    sending: str,
) -> None:
    health = check(box_api, box.add_number(**fields))
    assert health["status"] == status
    checks = health["checks"]
    assert checks["phone_number_connection"]["details"]["status"] == connection
    passed = {"CONNECTED": True, "DISCONNECTED": False, "UNKNOWN": None}[connection]
    assert checks["phone_number_connection"]["passed"] is passed
    assert checks["messaging_health"]["overall_status"] == sending
    assert checks["messaging_health"]["passed"] is (sending == "AVAILABLE")
    assert ("webhook_subscription" in failed(health)) == (connection == "DISCONNECTED")
    reasons = [
        entity.get("errors") or entity.get("additional_info")
        for entity in checks["messaging_health"]["details"]["entities"]
        if entity["can_send_message"] != "AVAILABLE"
    ]
    assert all(reasons)
    assert bool(reasons) == (sending != "AVAILABLE")


@pytest.mark.parametrize(
    ("events", "status", "sending"),
    [
        (["disabled"], "unhealthy", "BLOCKED"),
        (["restricted"], "degraded", "LIMITED"),
        (["disabled", "reinstated"], "healthy", "AVAILABLE"),
        (["violation"], "healthy", "AVAILABLE"),
    ],
)
def test_what_meta_decided_about_the_account_shows_in_the_health_of_its_numbers(
    box: Sandbox, box_api: Api, events: list[str], status: str, sending: str
) -> None:
    first, second = (box.add_number(business_account_id="42") for _ in range(2))
    other = box.add_number(business_account_id="43")
    check(box_api, second)
    for event in events:
        box.send_event(f"whatsapp.account.{event}", phone_number_id=first["phone_number_id"])
    health = check(box_api, second)
    assert health["status"] == status
    (account,) = (
        entity
        for entity in health["checks"]["messaging_health"]["details"]["entities"]
        if entity["entity_type"] == "WABA"
    )
    assert (account["id"], account["can_send_message"]) == ("42", sending)
    if sending != "AVAILABLE":
        (problem,) = account["errors"]
        assert {"error_code", "error_description", "possible_solution"} == set(problem)
    assert check(box_api, other)["status"] == "healthy"


def test_an_answer_is_kept_until_the_number_changes(box: Sandbox, box_api: Api) -> None:
    number = box.add_number()
    first = check(box_api, number)
    assert check(box_api, number) == first
    box.patch_number(number["phone_number_id"], quality_rating="RED")
    again = check(box_api, number)
    assert again["timestamp"] > first["timestamp"]
    assert again["checks"]["phone_number_access"]["details"]["quality_rating"] == "RED"


def test_answers_are_held_longer_after_each_access_error() -> None:
    from kapso_connect.sandbox.health import check_number
    from kapso_connect.sandbox.state import PhoneNumber

    number = PhoneNumber("1", "+1 415-555-0100", access_error=EXPIRED)
    at = datetime(2026, 1, 1, tzinfo=timezone.utc)
    holds = []
    for _ in range(5):
        check_number(number, at)
        assert number.health
        assert number.health["retry_after"] == number.health_until
        holds.append((number.health_until - at) // timedelta(minutes=1))
    assert holds == [5, 15, 30, 60, 60]
    number.access_error = ""
    check_number(number, at)
    assert "retry_after" not in number.health
    assert number.health_until - at == timedelta(minutes=3)
    number.access_error = EXPIRED
    check_number(number, at)
    assert number.health_until - at == timedelta(minutes=5)


@pytest.mark.parametrize("is_coexistence", [True, False])
def test_an_access_error_is_an_error_of_the_check(
    box: Sandbox, box_api: Api, is_coexistence: bool
) -> None:
    number = box.add_number(is_coexistence=is_coexistence, access_error=EXPIRED)
    health = check(box_api, number)
    assert (health["status"], health["error"]) == ("error", EXPIRED)
    assert health["retry_after"] > health["timestamp"]
    assert failed(health) == {
        "phone_number_access",
        *(["token_validity"] if is_coexistence else []),
    }
    assert check(box_api, number) == health
    box.patch_number(number["phone_number_id"], access_error="")
    assert check(box_api, number)["status"] == "healthy"
