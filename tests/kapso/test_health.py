"""What is wrong with a number, read from Kapso's health check."""

from __future__ import annotations

from typing import Any

import pytest
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from kapso_connect.kapso.health import find_problems
from kapso_connect.kapso.types import KapsoHealth

PAYMENT = {
    "error_code": 141006,
    "error_description": "There is an error with the payment method.",
    "possible_solution": "Add a payment method.",
}


def problems(**checks: Any) -> list[dict[str, str]]:
    return find_problems(KapsoHealth("unhealthy", timezone.now(), checks=checks))


NAMES = ["check", "entity", "code", "description", "solution"]


def problem(
    check: str, entity: str = "", code: str = "", text: str = "", solution: str = ""
) -> dict[str, str]:
    return dict(zip(NAMES, (check, entity, code, text, solution), strict=True))


def entities(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"passed": False, "details": {"entities": list(rows)}, **more}


@pytest.mark.parametrize(
    ("check", "found"),
    [
        ({"passed": True}, []),
        ({"passed": None}, []),
        ({"passed": None, "details": {"status": "UNKNOWN"}, "error": "timed out"}, []),
        ({}, []),
        ("no object", []),
        ({"passed": True, "details": "no object"}, []),
        ({"passed": False, "error": "No access\nat all"}, [problem("x", text="No access at all")]),
        ({"passed": False, "details": {"message": "Why"}}, [problem("x", text="Why")]),
        ({"passed": False}, [problem("x", text="failed")]),
        ({"passed": False, "error": ["no text"]}, [problem("x", text="failed")]),
        (
            {"passed": None, "details": {"status": "DISCONNECTED"}},
            [problem("x", text="DISCONNECTED")],
        ),
        ({"passed": True, "overall_status": "AVAILABLE"}, []),
        ({"overall_status": "BLOCKED"}, [problem("x", text="BLOCKED")]),
        ({"details": {"can_send_message": "LIMITED"}}, [problem("x", text="LIMITED")]),
        (
            entities({"entity_type": "WABA", "can_send_message": "BLOCKED", "errors": [PAYMENT]}),
            [problem("x", "WABA", "141006", *list(PAYMENT.values())[1:])],
        ),
        (
            entities(
                {"entity_type": "PHONE_NUMBER", "can_send_message": "AVAILABLE"},
                {"entity_type": "BUSINESS", "can_send_message": "LIMITED"},
                {
                    "entity_type": "PHONE_NUMBER",
                    "can_send_message": "LIMITED",
                    "additional_info": ["Name not approved.", "Small account."],
                },
                {"can_send_message": "AVAILABLE", "additional_info": ["All is well."]},
                "no object",
                {"entity_type": "APP", "errors": [{"error_description": "x" * 900}, "no object"]},
                passed=True,
            ),
            [
                problem("x", "BUSINESS", text="LIMITED"),
                problem("x", "PHONE_NUMBER", text="Name not approved."),
                problem("x", "PHONE_NUMBER", text="Small account."),
                problem("x", "APP", text="x" * 500),
            ],
        ),
    ],
)
def test_problems_of_a_check(check: Any, found: list[Any]) -> None:
    assert problems(x=check) == found


def test_problems_of_all_checks_are_limited() -> None:
    failed = {"passed": False, "error": "no"}
    assert [row["check"] for row in problems(a=failed, b=failed)] == ["a", "b"]
    assert len(problems(**{f"check{n}": failed for n in range(100)})) == 20


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("passed", "error", "details", "status", "entities", "errors"),
                    *("error_code", "can_send_message", "additional_info", "overall_status"),
                ]
            ),
            inner | st.just("BLOCKED"),
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), JSON, max_size=3))
def test_any_answer_can_be_read(checks: dict[str, Any]) -> None:
    for row in problems(**checks):
        assert list(row) == NAMES
        assert all(isinstance(text, str) and "\0" not in text for text in row.values())
